"""A dataset whose `__getitem__` burns 5 ms of CPU in pure Python: whether each worker brings one core."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from figures import markdown, spread

BURN_MS, BATCH, WARMUP, BATCHES, REPEATS = 5, 8, 8, 48, 5
SHARE = 0.95


class Burning:
    """Samples that cost CPU time which holds the interpreter's lock."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[int, int]:
        end, number = time.thread_time_ns() + BURN_MS * 1_000_000, 0
        while time.thread_time_ns() < end:
            for _ in range(2000):  # the clock is a system call
                number += 1
        return index, 0


def run() -> str:
    import torch

    from feedrate.loader import Loader
    from feedrate.system.cores import usable_cores

    torch.set_num_threads(1)
    data: Any = Burning(BATCH * (WARMUP + BATCHES))
    loaders = {
        workers: Loader(data, batch_size=BATCH, num_workers=workers, persistent_workers=workers > 0, seed=0)
        for workers in sorted({0, 1, 2, usable_cores()})
    }
    rates: dict[int, list[float]] = {workers: [] for workers in loaders}
    for _ in range(REPEATS):
        for workers, loader in loaders.items():
            rates[workers].append(_rate(loader))
    for loader in loaders.values():
        loader.close()
    rows = []
    for workers, found in rates.items():
        wanted = SHARE * min(max(1, workers), usable_cores())
        reached = median(found) / median(rates[0])
        verdict = "-" if not workers else "pass" if reached >= wanted else "**falls short**"
        rows.append((f"{workers} workers", spread(found, 1), f"{reached:.3f}", f"{wanted:.2f}", verdict))
    return markdown(["5 ms of CPU for each sample", "samples/s", "times 0 workers", "promised", ""], rows)


def _rate(loader: Any) -> float:
    begin = 0.0
    for number, _ in enumerate(loader, 1):
        if number == WARMUP:
            begin = time.perf_counter()
    return BATCH * BATCHES / (time.perf_counter() - begin)
