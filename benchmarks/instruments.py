"""What the account of each batch costs: the same training with it, and with its instruments taken out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from figures import markdown, spread

ROOT = Path(__file__).resolve().parents[1]
REPEATS, SECONDS, WARMUP = 15, 0.6, 20
STEP_MS = 0.6  # with inline loading of 64 small files, some 50,000 samples/s
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
        loader = Loader(data, 64, True, num_workers=workers, seed=0, **chosen)
        batches = _endless(loader)
        _rate(batches)
        found: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(REPEATS):
            for told in (True, False):
                with contextlib.nullcontext() if told else _taken_out():
                    found[told].append(_rate(batches))
        loader.close()
        costs = [100 * (1 - a / b) for a, b in zip(found[True], found[False], strict=True)]
        verdict = "pass" if median(costs) <= MOST_PCT else "**falls short**"
        rows.append(
            (f"{engine} {workers}", spread(found[True], 0), spread(found[False], 0), spread(costs), verdict)
        )  # fmt: skip
    head = ["12 KB files, batch 64, a step of 0.6 ms", "samples/s with", "without", "cost, %", "at most 1 %"]
    return markdown(head, rows)


def _endless(loader: Any) -> Iterator[Any]:
    import torch

    from feedrate.loader import ToDevice
    from feedrate.timing import Clock

    clock = Clock(torch.device("cpu"), 5)
    while True:
        clock.begin()
        for batch in ToDevice(loader, torch.device("cpu"), clock):
            yield batch
            clock.lap("compute")
            clock.step(len(batch.X), batch.nbytes, batch.receipt.load if batch.receipt else None)


def _rate(batches: Iterator[Any]) -> float:
    """Samples/s beside a step that keeps this thread busy, so that no time is left that would hide the cost."""
    for _ in range(WARMUP):
        next(batches)
    samples, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < SECONDS:
        samples += len(next(batches).X)
        end = time.perf_counter() + STEP_MS / 1e3
        while time.perf_counter() < end:
            pass
    return samples / (time.perf_counter() - begin)


@contextlib.contextmanager
def _taken_out() -> Iterator[None]:
    """Clocks, stages and rows do nothing within it, in this process; workers go on telling."""
    from feedrate.loader import fetch, report
    from feedrate.timing import clock, stages

    nothing = stages.Load(0, 0, 0, (0,) * len(stages.STAGES), None)

    class Silent:
        samples_ns = ()

        def stop(self, worker: Any, slow: Any = ()) -> Any:
            return nothing

    kept = [
        (fetch, "Watch", Silent),
        (report.Report, "add", lambda *_: None),
        (clock.Clock, "lap", lambda *_: None),
        (clock.Clock, "step", lambda *_: None),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in kept]
    for owner, name, value in kept:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
