"""The largest batch that fits: doubled until memory, the number of samples or the time sets a limit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

NEAR = 0.8  # share of the free main memory that a batch may be expected to take
_PROCESS = Path("/proc/self")


def largest_batch(
    fits: Callable[[int], bool], batch_size: int, samples: int, free_bytes: int | None, seconds: float
) -> tuple[int, str]:
    """Doubles the batch size as long as it fits; returns the largest, and why the next one was not tried or kept.

    Args:
        fits: trains on some batches of a size; False: the device's memory is too small.
        batch_size: to begin with.
        samples: of the training partition.
        free_bytes: of the main memory, None if unknown.
        seconds: for all attempts, about.
    """
    begin = time.perf_counter()
    reached, following = batch_size, batch_size
    while True:
        with _grown() as grown:
            if not fits(following):
                return reached, f"the device's memory is too small for {following}"
        reached, following = following, 2 * following
        if following > samples:
            return reached, f"there are {samples:,} samples"
        # memory and time double with the batch size
        if free_bytes is not None and 2 * grown[0] > NEAR * free_bytes:
            return reached, f"{following} would need about {2 * grown[0] / 1e6:,.0f} MB of main memory"
        if 2 * (time.perf_counter() - begin) > seconds:
            return reached, f"there is no time to try {following}"


@contextmanager
def _grown() -> Iterator[list[int]]:
    """At its end the list holds the bytes by which this process's memory grew at most."""
    before = psutil.Process().memory_info().rss
    with suppress(OSError):  # elsewhere than on Linux the peak is that of all time, which is on the safe side
        (_PROCESS / "clear_refs").write_text("5")
    grown = [0]
    yield grown
    grown[0] = max(0, _peak() - before)


def _peak() -> int:
    """Peak resident memory, bytes.

    Source: Linux kernel documentation, filesystems/proc.rst (clear_refs, VmHWM).
    """
    with suppress(OSError):
        for line in (_PROCESS / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return int(psutil.Process().memory_info().rss)
