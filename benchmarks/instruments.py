"""What measuring costs: the same training loop with Feedrate's timing, and with the timing removed.

Two processes train on the same files, one with timing and one without. They take turns, a block of a few batches each,
hundreds of times, so that changes of the machine affect both alike. The cost is the additional time of a block, in wall
time and in CPU time; CPU time varies less where training and workers compete for the cores. A second table times the
calls by themselves.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

from figures import markdown

ROOT = Path(__file__).resolve().parents[1]
BATCH, STEP_MS = 64, 0.6  # with inline loading of 64 small files, some 50,000 samples/s
RATE = 50_000  # samples/s
WARMUP = 50  # batches of each process before its first block
PAIRS = {"inline": 20, "thread": 30, "process": 30}  # pairs of processes by engine, one pair after another
BLOCKS = 100  # of each process
COUNTED, SKIPPED = 10, 6  # batches of a block that are timed, and prefetched batches before them that are not
PAUSE_S = 0.004  # after a block, in which workers prefetch until their queues are full
CALLS, REPEATS = 2000, 15
MOST_PCT = 1.0  # the cost that counts as passed


def run() -> str:
    rows = []
    for engine, workers in (("inline", 0), ("thread", 2), ("process", 2)):
        timed, untimed = _blocks(engine, workers)
        rates = [f"{1e9 * BATCH * COUNTED / median(block.ns for block in blocks):,.0f}" for blocks in (timed, untimed)]
        wall, cpu = (_cost(timed, untimed, of) for of in ("ns", "cpu_ns"))
        rows.append((f"{engine} {workers}", *rates, _with_interval(wall), _with_interval(cpu), _passes(*wall)))
        print(*rows[-1], sep=" | ", flush=True)
    head = ["12 KB files, batch 64, a step of 0.6 ms", "samples/s with", "without", "cost in time, % (95 % interval)"]
    return f"{markdown([*head, 'in processor time, %', 'at most 1 %'], rows)}\n\n{_alone()}"


def _cost(timed: Sequence[Block], untimed: Sequence[Block], of: str) -> tuple[float, float, float]:
    """Percent by which a block takes longer with timing: median over the pairs of blocks, and its 95 % interval."""
    costs = [100 * (getattr(a, of) / getattr(b, of) - 1) for a, b in zip(timed, untimed, strict=True)]
    return median(costs), *_interval(costs)


def _with_interval(cost: tuple[float, float, float]) -> str:
    return "{:.2f} ({:.2f} to {:.2f})".format(*cost)


def _passes(pct: float, low: float, high: float) -> str:
    """Whether the cost is at most MOST_PCT; "within the noise" where the interval contains MOST_PCT."""
    word = "pass" if pct <= MOST_PCT else "**falls short**"
    return word if not low <= MOST_PCT < high else f"{word}, within the noise"


# ---------------------------------------------------------------------------------------------------------
# within training
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """One block of one process.

    Attributes:
        ns: wall time of the COUNTED batches.
        cpu_ns: CPU time of the process and its workers, SKIPPED batches included.
    """

    ns: int
    cpu_ns: int


def _blocks(engine: str, workers: int) -> tuple[list[Block], list[Block]]:
    """Blocks with timing and blocks without, in pairs; the order within a pair alternates."""
    found: dict[bool, list[Block]] = {True: [], False: []}
    for pair in range(PAIRS[engine]):
        with _training(engine, workers, pair) as training:
            for number in range(BLOCKS):
                for timed in (True, False) if number % 2 else (False, True):
                    training[timed].send(True)
                    ns = training[timed].recv()
                    time.sleep(PAUSE_S if workers else 0)
                    training[timed].send(True)
                    found[timed].append(Block(ns, training[timed].recv()))
    return found[True], found[False]


@contextmanager
def _training(engine: str, workers: int, pair: int) -> Iterator[dict[bool, Connection]]:
    """A process with timing and one without; the order of starting alternates, as the later one is a bit faster."""
    fork = multiprocessing.get_context("fork")
    training: dict[bool, Connection] = {}
    for timed in (True, False) if pair % 2 else (False, True):
        training[timed], theirs = fork.Pipe()
        fork.Process(target=_train, args=(theirs, timed, engine, workers)).start()
        training[timed].recv()
    yield training
    for connection in training.values():
        connection.send(False)


def _train(turns: Connection, timed: bool, engine: str, workers: int) -> None:
    """Trains one block for each True received, sends its wall time, and its CPU time on request; False ends it."""
    import torch
    from peers.sets import SETS, make_set

    from feedrate.dataset import TensorFiles
    from feedrate.loader import Loader
    from feedrate.timing import Clock

    torch.set_num_threads(1)
    of = SETS[0]
    data = TensorFiles(of.list_IDs, of.labels, make_set(of, ROOT / "data/peers") / "pt")
    chosen: dict[str, Any] = {"engine": engine, "persistent_workers": True} if workers else {}
    loader = Loader(data, BATCH, True, num_workers=workers, seed=0, **chosen)
    clock = Clock(torch.device("cpu"), 5)
    if not timed:
        _remove_timing(clock)
    batches = _endless(loader, clock)
    for _ in range(WARMUP):
        next(batches)
    a, b = torch.ones(2, 64, 64)
    turns.send(None)
    while turns.recv():
        before = _cpu_ns(loader)
        _steps(batches, SKIPPED, lambda: torch.mm(a, a, out=b))
        turns.send(_steps(batches, COUNTED, lambda: torch.mm(a, a, out=b)))
        turns.recv()
        turns.send(_cpu_ns(loader) - before)
    loader.close()


def _cpu_ns(loader: Any) -> int:
    """CPU time of this process and its worker processes."""
    workers = [ids for ids in loader.worker_ids() if ids[0] != os.getpid()]
    texts = [Path(f"/proc/{process}/task/{thread}/schedstat").read_text() for process, thread in workers]
    return time.process_time_ns() + sum(int(text.split()[0]) for text in texts)


def _steps(batches: Iterator[Any], count: int, compute: Callable[[], Any]) -> int:
    """Wall time in ns. A step computes all the time, since a sleep would hide the cost."""
    begin = time.perf_counter_ns()
    for _ in range(count):
        next(batches)
        end = time.perf_counter_ns() + STEP_MS * 1e6
        while time.perf_counter_ns() < end:
            compute()
    return time.perf_counter_ns() - begin


def _endless(loader: Any, clock: Any) -> Iterator[Any]:
    import torch

    from feedrate.loader import ToDevice

    while True:
        clock.begin()
        for batch in ToDevice(loader, torch.device("cpu"), clock):
            yield batch
            clock.step(len(batch.X), batch.info.nbytes, batch.info.timing)


def _remove_timing(clock: Any) -> None:
    """Replaces the clock of this process, and the watch of its later worker processes, by ones that do nothing."""
    from feedrate.loader import fetcher as fetch
    from feedrate.timing import stages

    nothing = stages.Load(0, 0, 0, stages.MAIN_THREAD)

    class Watch:
        samples_ns = ()

        @staticmethod
        def start(computed: Any) -> Watch:
            return watch

        def stop(self, number: int) -> stages.Load:
            return nothing

    class Clock(type(clock)):
        def begin(self) -> None:
            pass

        def lap(self, phase: str) -> None:
            pass

        def step(self, samples: int, nbytes: int, timing: Any = None) -> None:
            pass

    watch = fetch.Watch = Watch()
    clock.__class__ = Clock


def _interval(values: list[float], draws: int = 1000) -> tuple[float, float]:
    """95 % interval of the median, by bootstrap."""
    draw = random.Random(0)
    medians = sorted(median(draw.choices(values, k=len(values))) for _ in range(draws))
    return medians[round(0.025 * draws)], medians[round(0.975 * draws)]


# ---------------------------------------------------------------------------------------------------------
# alone
# ---------------------------------------------------------------------------------------------------------


def _alone() -> str:
    """Time of the calls by themselves, in microseconds a batch, and their share of a batch at RATE."""
    import torch

    from feedrate.loader.engines.step_probe import StepProbe
    from feedrate.timing import Clock
    from feedrate.timing.stages import Computed, Watch

    clock, probe, computed = Clock(torch.device("cpu"), 5), StepProbe(2), Computed()

    def watch() -> tuple[int, ...]:
        return Watch.start(computed).stop(0)

    timing = watch()

    def record() -> None:
        clock.lap("wait")
        clock.step(BATCH, 1000, timing)

    def probe_step() -> None:
        probe.requested(False)
        probe.enter()
        probe.leave()

    parts: dict[str, Callable[[], Any]] = {
        "watch in the worker": watch,
        "clock and row of the training": record,
        "step probe of threads": probe_step,
    }
    taken = {name: median(_each_us(part) for _ in range(REPEATS)) for name, part in parts.items()}
    whole_us = 1e6 * BATCH / RATE
    rows = [(name, f"{us:.1f}", f"{100 * us / whole_us:.2f}", "") for name, us in taken.items()]
    total = 100 * sum(taken.values()) / whole_us
    rows.append(("together, in one thread", f"{sum(taken.values()):.1f}", f"{total:.2f}", _passes(total, total, total)))
    return markdown(["by itself", "microseconds a batch", f"% at {RATE:,} samples/s", "at most 1 %"], rows)


def _each_us(call: Callable[[], Any]) -> float:
    begin = time.perf_counter_ns()
    for _ in range(CALLS):
        call()
    return (time.perf_counter_ns() - begin) / CALLS / 1e3
