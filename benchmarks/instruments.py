"""What the account of each batch costs: the same training with it, and with its instruments taken out.

Two processes train, one of them without; they take turns, a block of a few batches each, hundreds of times, so that
what the machine does meanwhile falls on both. The time that a block takes says what is lost; the processor time of the
training and its workers says the same with less noise, where they compete for the cores. Then the instruments alone are
called again and again.
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
RATE = 50_000
FIRST = 50  # batches of each process before the first block
PAIRS = {"inline": 20, "thread": 30, "process": 30}  # of processes, one after another
BLOCKS, COUNTED, LEFT_OUT = 100, 10, 6  # of each; batches of a block that count, and before them, made ahead
PAUSE_S = 0.004  # after a block, in which its workers make what is to be made ahead, and come to rest
CALLS, REPEATS = 2000, 15
MOST_PCT = 1.0


def run() -> str:
    rows = []
    for engine, workers in (("inline", 0), ("thread", 2), ("process", 2)):
        told, silent = _blocks(engine, workers)
        rates = [f"{1e9 * BATCH * COUNTED / median(block.ns for block in blocks):,.0f}" for blocks in (told, silent)]
        wall, cpu = (_cost(told, silent, of) for of in ("ns", "cpu_ns"))
        rows.append((f"{engine} {workers}", *rates, _said(wall), _said(cpu), _passes(*wall)))
        print(*rows[-1], sep=" | ", flush=True)
    head = ["12 KB files, batch 64, a step of 0.6 ms", "samples/s with", "without", "cost in time, % (95 % interval)"]
    return f"{markdown([*head, 'in processor time, %', 'at most 1 %'], rows)}\n\n{_alone()}"


def _cost(told: Sequence[Block], silent: Sequence[Block], of: str) -> tuple[float, float, float]:
    """Percent that a block takes longer with the instruments, the middle one, and in which interval it lies."""
    costs = [100 * (getattr(a, of) / getattr(b, of) - 1) for a, b in zip(told, silent, strict=True)]
    return median(costs), *_interval(costs)


def _said(cost: tuple[float, float, float]) -> str:
    return "{:.2f} ({:.2f} to {:.2f})".format(*cost)


def _passes(pct: float, low: float, high: float) -> str:
    """Whether it is at most MOST_PCT, and whether that can be told."""
    word = "pass" if pct <= MOST_PCT else "**falls short**"
    return word if not low <= MOST_PCT < high else f"{word}, within the noise"


# ---------------------------------------------------------------------------------------------------------
# within training
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """What a block of COUNTED batches took, and what it computed with those before it, in its workers as well."""

    ns: int
    cpu_ns: int


def _blocks(engine: str, workers: int) -> tuple[list[Block], list[Block]]:
    """Blocks with the instruments, and the one without beside each; which comes first changes."""
    found: dict[bool, list[Block]] = {True: [], False: []}
    for pair in range(PAIRS[engine]):
        with _training(engine, workers, pair) as training:
            for number in range(BLOCKS):
                for told in (True, False) if number % 2 else (False, True):
                    training[told].send(True)
                    ns = training[told].recv()
                    time.sleep(PAUSE_S if workers else 0)
                    training[told].send(True)
                    found[told].append(Block(ns, training[told].recv()))
    return found[True], found[False]


@contextmanager
def _training(engine: str, workers: int, pair: int) -> Iterator[dict[bool, Connection]]:
    """A process with instruments and one without; which is started first changes, as the later is a bit faster."""
    fork = multiprocessing.get_context("fork")
    training: dict[bool, Connection] = {}
    for told in (True, False) if pair % 2 else (False, True):
        training[told], theirs = fork.Pipe()
        fork.Process(target=_train, args=(theirs, told, engine, workers)).start()
        training[told].recv()
    yield training
    for connection in training.values():
        connection.send(False)


def _train(turns: Connection, told: bool, engine: str, workers: int) -> None:
    """Trains a block, and says how long it took, as often as it is told to go on."""
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
    if not told:
        _silence(clock)
    batches = _endless(loader, clock)
    for _ in range(FIRST):
        next(batches)
    a, b = torch.ones(2, 64, 64)
    turns.send(None)
    while turns.recv():
        before = _computed_ns(loader)
        _steps(batches, LEFT_OUT, lambda: torch.mm(a, a, out=b))
        turns.send(_steps(batches, COUNTED, lambda: torch.mm(a, a, out=b)))
        turns.recv()
        turns.send(_computed_ns(loader) - before)
    loader.close()


def _computed_ns(loader: Any) -> int:
    """By this process and its worker processes."""
    workers = [ids for ids in loader.worker_ids() if ids[0] != os.getpid()]
    told = [Path(f"/proc/{process}/task/{thread}/schedstat").read_text() for process, thread in workers]
    return time.process_time_ns() + sum(int(text.split()[0]) for text in told)


def _steps(batches: Iterator[Any], count: int, compute: Callable[[], Any]) -> int:
    """Nanoseconds; a step computes as training does, so that no time is left that would hide the cost."""
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


def _silence(clock: Any) -> None:
    """Takes the clocks and rows of this process out; worker processes to come get no watch either."""
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
    """In which the median lies with 95 %, by drawing the values again and again."""
    draw = random.Random(0)
    medians = sorted(median(draw.choices(values, k=len(values))) for _ in range(draws))
    return medians[round(0.025 * draws)], medians[round(0.975 * draws)]


# ---------------------------------------------------------------------------------------------------------
# alone
# ---------------------------------------------------------------------------------------------------------


def _alone() -> str:
    """Microseconds a batch that the calls take by themselves, and what that is of a batch at 50,000 samples/s."""
    import torch

    from feedrate.loader.engines.step_probe import StepProbe
    from feedrate.timing import Clock
    from feedrate.timing.stages import Computed, Watch

    clock, probe, computed = Clock(torch.device("cpu"), 5), StepProbe(2), Computed()

    def watched() -> tuple[int, ...]:
        return Watch.start(computed).stop(0)

    load = watched()

    def laps() -> None:
        clock.lap("wait")
        clock.step(BATCH, 1000, load)

    def passed() -> None:
        probe.requested(False)
        probe.enter()
        probe.leave()

    parts: dict[str, Callable[[], Any]] = {
        "watch in the worker": watched,
        "clock and row of the training": laps,
        "step probe of threads": passed,
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
