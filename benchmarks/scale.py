"""Ten million samples, and a billion: time to the first batch, memory, and the time that the order takes per batch.

Samples cost next to nothing here, so that the figures are those of the loader. No files are needed. catalog.py measures
how far workers copy a catalog.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from figures import markdown, spread

HERE = Path(__file__).resolve().parent
REPEATS = 5
BATCH = 256


class Numbers(Sequence[str]):
    """IDs that are computed: `sample-00000042`."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self.size:
            raise IndexError(index)
        return f"sample-{index:08}"


class Cheap:
    """A dataset of 16 zeros per sample, with whole batches."""

    def __init__(self, list_IDs: Any) -> None:
        self.list_IDs = list_IDs

    def __len__(self) -> int:
        return len(self.list_IDs)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        import torch

        return torch.zeros(16), index % 10

    def load_batch(self, indices: np.ndarray, empty: Any) -> tuple[Any, Any]:
        import torch

        return empty((len(indices), 16), torch.float32).zero_(), torch.from_numpy(indices % 10)


def run() -> str:
    rows = []
    for size in (10_000_000, 1_000_000_000):
        for kind in ("catalog", "computed"):
            if kind == "catalog" and size > 10_000_000:
                continue
            for workers in (0, 2):
                rows.append(_in_a_process(kind, size, workers))
    loading = markdown(
        ["samples, IDs, workers", "Loader made, s", "then to the first batch, s", "main process beyond imports, MB",
         "worker's own after 2,000 batches, MB", "its growth over 6,000 more, MB"], rows,
    )  # fmt: skip
    return f"{loading}\n\n{_orders()}"


def _in_a_process(kind: str, size: int, workers: int) -> tuple[str, ...]:
    """Row of one configuration: medians of three fresh processes."""
    found = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, str(HERE / "scale.py"), kind, str(size), str(workers)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        found.append([float(value) for value in done.stdout.split()])
    columns = list(zip(*found, strict=True))
    shown = [spread(column) for column in columns[:2]] + [f"{median(column):.1f}" for column in columns[2:]]
    if not workers:
        shown[3:] = ["-", "-"]
    return (f"{size:,}, {kind}, {workers}", *shown)


def _one(kind: str, size: int, workers: int) -> list[float]:
    import psutil
    import torch

    from feedrate.dataset import IDs
    from feedrate.loader import Loader

    torch.zeros(1)
    imported = _held()
    list_IDs: Any = IDs(f"sample-{i:08}" for i in range(size)) if kind == "catalog" else Numbers(size)
    gc.collect()
    begin = time.perf_counter()
    loader = Loader(Cheap(list_IDs), batch_size=BATCH, shuffle=True, num_workers=workers, seed=0)  # type: ignore[arg-type]
    made = time.perf_counter()
    batches = iter(loader)
    next(batches)
    first = time.perf_counter()
    _take(batches, 2000)
    processes = psutil.Process().children(recursive=True)
    before = _mean(processes)
    _take(batches, 6000)
    main = _held() - imported
    after = _mean(processes)
    loader.close()
    return [made - begin, first - made, main / 1e6, before / 1e6, (after - before) / 1e6]


def _take(batches: Iterator[Any], count: int) -> None:
    for _ in range(count):
        next(batches)


def _mean(processes: Sequence[Any]) -> float:
    return sum(_own(p) for p in processes) / max(1, len(processes))


def _held() -> int:
    """Resident bytes of this process, shared memory included, without pages of files."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(line[1]) * 1024 for line in lines if line and line[0] in ("RssAnon:", "RssShmem:"))


def _own(process: Any) -> int:
    """Private memory of a process in bytes (USS)."""
    return int(process.memory_full_info().uss)


def _orders() -> str:
    """Time to compute the indices of a batch of 256: mean, and longest."""
    from feedrate.loader import Order

    sizes = (10_000, 10_000_000, 1_000_000_000, 10**12)
    means: dict[int, list[float]] = {size: [] for size in sizes}
    longest: dict[int, list[float]] = {size: [] for size in sizes}
    for repeat in range(REPEATS):
        for size in sizes:
            order, times = Order(size, repeat, 0, True), []
            for number in range(min(1024, size // BATCH)):
                begin = time.perf_counter_ns()
                order.indices(number * BATCH, (number + 1) * BATCH)
                times.append(time.perf_counter_ns() - begin)
            means[size].append(sum(times) / len(times) / 1e3)
            longest[size].append(max(times) / 1e6)
    rows = [(f"{size:,}", spread(means[size], 1), spread(longest[size], 1)) for size in sizes]
    return markdown(["samples in the order", "a batch of 256, mean, us", "the longest, ms"], rows)


if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parent / "src"), str(HERE)]
    print(*_one(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
