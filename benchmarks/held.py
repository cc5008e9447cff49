"""What `auto` decides by: threads against processes with a training step, by how long a batch holds the interpreter.

Samples cost nothing but that time, so the row in which processes overtake threads is the limit, HELD_MS of engine.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import numpy as np
from figures import markdown, spread

REPEATS, BATCH, BATCHES, WORKERS = 5, 64, 40, 1
HELD_MS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
STEP_MS = 10.0


class Held:
    """Batches of 64 KB, each of which keeps the interpreter busy for some time."""

    thread_safe = True

    def __init__(self, held_ms: float) -> None:
        import torch

        self.held_ms, self.X = held_ms, torch.zeros(1024)

    def __len__(self) -> int:
        return BATCH * 1000

    def __getitem__(self, index: int) -> Any:
        return self.X, 0

    def load_batch(self, indices: np.ndarray, empty: Any) -> Any:
        import torch

        until = time.thread_time_ns() + int(self.held_ms * 1e6)
        while time.thread_time_ns() < until:
            sum(range(50))
        return empty((len(indices), 1024), torch.uint8).zero_(), torch.from_numpy(indices)


def run() -> str:
    from feedrate.loader import Loader

    rows = []
    for held_ms in HELD_MS:
        sources = {}
        for engine in ("process", "thread"):  # processes first: they are forked
            loader = Loader(
                Held(held_ms), batch_size=BATCH, seed=0, num_workers=WORKERS, engine=engine, persistent_workers=True  # type: ignore[arg-type]
            )  # fmt: skip
            loader.start()
            sources[engine] = (loader, _endless(loader))
        for name, step in _steps().items():
            ratios, waits = [], []
            for number in range(REPEATS + 1):
                times = {engine: _time(batches, step) for engine, (_, batches) in sources.items()}
                if number:
                    ratios.append(times["process"] / times["thread"])
                    waits.append(times["thread"])
            better = "thread" if median(ratios) > 1 else "process"
            rows.append((f"{held_ms:g} ms, {name}", f"{1e3 * median(waits):.2f}", spread(ratios), better))
        for loader, _ in sources.values():
            loader.close()
    head = ["a batch holds the interpreter, step", "threads, ms a step", "process to thread, time", "less time"]
    return markdown(head, rows)


def _steps() -> dict[str, Callable[[], None]]:
    """A device that computes while the host sleeps; launching kernels from Python; kernels that let go of it."""
    import torch

    small, large = torch.ones(8, 8), torch.ones(300, 300)

    def launch() -> None:
        for _ in range(3000):  # about 10 ms of the interpreter
            small.add_(1)

    def compute() -> None:
        for _ in range(10):
            large @ large

    return {"sleeps": lambda: time.sleep(STEP_MS / 1e3), "launches": launch, "computes": compute}


def _endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def _time(batches: Iterator[Any], step: Callable[[], None]) -> float:
    """Seconds a step, its wait included."""
    for _ in range(4):
        next(batches)
        step()
    begin = time.perf_counter()
    for _ in range(BATCHES):
        next(batches)
        step()
    return (time.perf_counter() - begin) / BATCHES
