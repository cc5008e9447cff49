"""The largest batch that fits: doubled until memory, the number of samples or the time sets a limit."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable

import psutil

NEAR = 0.8  # share of the free main memory that a batch may be expected to take


def largest_batch(
    fits: Callable[[int], bool], batch_size: int, samples: int, free_bytes: int | None, seconds: float
) -> tuple[int, str]:
    """Doubles the batch size as long as it fits; returns the largest, and why the next one was not tried or kept.

    `fits` trains on some batches of a size, and is False where the device's memory is too small; `samples` are those of
    the training partition, `free_bytes` those of the main memory, `seconds` for all attempts, about.
    """
    begin, before = time.perf_counter(), psutil.Process().memory_info().rss
    reached, following = batch_size, batch_size
    while fits(following):
        reached, following = following, 2 * following
        if following > samples:
            return reached, f"there are {samples:,} samples"
        needed = 2 * (_peak_bytes() - before)  # memory and time double with the batch size
        if free_bytes is not None and needed > NEAR * free_bytes:
            return reached, f"{following} would need about {needed / 1e6:,.0f} MB of main memory"
        if 2 * (time.perf_counter() - begin) > seconds:
            return reached, f"there is no time to try {following}"
    return reached, f"the device's memory is too small for {following}"


def _peak_bytes() -> int:
    """Peak resident memory of this process so far; `ru_maxrss` is in kilobytes, on macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
