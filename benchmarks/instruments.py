"""What the account of each batch costs: the same training with it, and with its instruments taken out.

Blocks of a few batches with and without follow one another within one loop, hundreds of each, so that what the machine
does meanwhile falls on both; and the instruments alone are called again and again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from figures import markdown

ROOT = Path(__file__).resolve().parents[1]
BATCH, STEP_MS = 64, 0.6  # with inline loading of 64 small files, some 50,000 samples/s
RATE = 50_000
BLOCKS, COUNTED, LEFT_OUT = 600, 10, 6  # pairs of blocks; batches of each that count, and before them, made ahead
CALLS, REPEATS = 2000, 15
MOST_PCT = 1.0


def run() -> str:
    import torch
    from peers.sets import SETS, make_set

    from feedrate.dataset import TensorFiles
    from feedrate.loader import Loader

    torch.set_num_threads(1)
    of = SETS[0]
    data = TensorFiles(of.list_IDs, of.labels, make_set(of, ROOT / "data/peers") / "pt")
    rows = []
    for engine, workers in (("inline", 0), ("thread", 2), ("process", 2)):
        chosen: dict[str, Any] = {"engine": engine, "persistent_workers": True} if workers else {}
        loader = Loader(data, BATCH, True, num_workers=workers, seed=0, **chosen)
        told, silent = _blocks(loader)
        loader.close()
        costs = sorted(100 * (a / b - 1) for a, b in zip(told, silent, strict=True))
        low, high = _interval(costs)
        rates = [f"{1e9 * BATCH * COUNTED / median(taken):,.0f}" for taken in (told, silent)]
        rows.append((f"{engine} {workers}", *rates, f"{median(costs):.2f} ({low:.2f} to {high:.2f})", _passes(high)))
    head = ["12 KB files, batch 64, a step of 0.6 ms", "samples/s with", "without", "cost, % (95 % interval)"]
    return f"{markdown([*head, 'at most 1 %'], rows)}\n\n{_alone()}"


def _passes(pct: float) -> str:
    return "pass" if pct <= MOST_PCT else "**falls short**"


# ---------------------------------------------------------------------------------------------------------
# within training
# ---------------------------------------------------------------------------------------------------------


def _blocks(loader: Any) -> tuple[list[int], list[int]]:
    """Nanoseconds of each block with the instruments, and of the one without beside it; which comes first changes."""
    import torch

    from feedrate.timing import Clock

    clock = Clock(torch.device("cpu"), 5)
    batches = _endless(loader, clock)
    silence = _Silence(clock, loader)
    found: dict[bool, list[int]] = {True: [], False: []}
    for _ in range(50):
        next(batches)
    for number in range(BLOCKS):
        for told in (True, False) if number % 2 else (False, True):
            silence.change(not told)
            _steps(batches, LEFT_OUT)
            found[told].append(_steps(batches, COUNTED))
    silence.change(False)
    return found[True], found[False]


def _steps(batches: Iterator[Any], count: int) -> int:
    """Nanoseconds; a step keeps this thread busy, so that no time is left that would hide the cost."""
    begin = time.perf_counter_ns()
    for _ in range(count):
        next(batches)
        end = time.perf_counter_ns() + STEP_MS * 1e6
        while time.perf_counter_ns() < end:
            pass
    return time.perf_counter_ns() - begin


def _endless(loader: Any, clock: Any) -> Iterator[Any]:
    import torch

    from feedrate.loader import ToDevice

    while True:
        clock.begin()
        for batch in ToDevice(loader, torch.device("cpu"), clock):
            yield batch
            clock.lap("compute")
            clock.step(len(batch.X), batch.nbytes, batch.receipt.load if batch.receipt else None)


class _Silence:
    """Takes the clocks and rows of this process out, and puts them back; workers go on telling."""

    def __init__(self, clock: Any, loader: Any) -> None:
        from feedrate.loader import fetch
        from feedrate.timing import stages

        nothing = stages.Load(0, 0, 0, (0,) * len(stages.STAGES), None)

        class Watch:
            samples_ns = ()

            def stop(self, worker: Any, slow: Any = ()) -> Any:
                return nothing

        class Clock(type(clock)):
            def lap(self, phase: str) -> None:
                pass

            def step(self, samples: int, nbytes: int, load: Any = None) -> None:
                pass

        class Report(type(loader.report())):
            def add(self, *_: Any) -> None:
                pass

        self._fetch, self._watches = fetch, (fetch.Watch, Watch)
        self._changed = [(thing, (type(thing), other)) for thing, other in ((clock, Clock), (loader.report(), Report))]

    def change(self, silent: bool) -> None:
        self._fetch.Watch = self._watches[silent]
        for thing, kinds in self._changed:
            thing.__class__ = kinds[silent]


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

    from feedrate.loader.gate import Gate
    from feedrate.loader.report import Report
    from feedrate.timing import Clock
    from feedrate.timing.epoch_times import Setup
    from feedrate.timing.stages import Watch

    clock, gate = Clock(torch.device("cpu"), 5), Gate(2)
    report = Report(Setup(engine="thread", workers=2, prefetch=2, batch_size=BATCH, cores=2.0))
    load = Watch().stop(0)

    def laps() -> None:
        for phase in ("wait", "transfer", "compute"):
            clock.lap(phase)
        clock.step(BATCH, 1000, load)

    def passed() -> None:
        gate.asked(False)
        gate.enter()
        gate.leave()

    parts: dict[str, Callable[[], Any]] = {
        "watch in the worker": lambda: Watch().stop(0),
        "clock and row of the training": laps,
        "row of the loader": lambda: report.add(1000, 2000, load, BATCH, 1000),
        "gate of threads": passed,
    }
    taken = {name: median(_each_us(part) for _ in range(REPEATS)) for name, part in parts.items()}
    whole_us = 1e6 * BATCH / RATE
    rows = [(name, f"{us:.1f}", f"{100 * us / whole_us:.2f}", "") for name, us in taken.items()]
    total = 100 * sum(taken.values()) / whole_us
    rows.append(("together, in one thread", f"{sum(taken.values()):.1f}", f"{total:.2f}", _passes(total)))
    return markdown(["by itself", "microseconds a batch", f"% at {RATE:,} samples/s", "at most 1 %"], rows)


def _each_us(call: Callable[[], Any]) -> float:
    begin = time.perf_counter_ns()
    for _ in range(CALLS):
        call()
    return (time.perf_counter_ns() - begin) / CALLS / 1e3
