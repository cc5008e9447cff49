"""The largest batch that fits: doubled until memory, the number of samples or the time for it says no.

A larger batch is another training; whether that is wanted is the user's to say (tune.batch_size).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

NEAR = 0.8  # of the memory that is free: no batch is tried that is expected to take more
_PROCESS = Path("/proc/self")


@dataclass(frozen=True)
class Largest:
    """What came of it.

    Attributes:
        batch_size: the largest one that was tried and fits.
        ended_by: why the next one was not, in words.
    """

    batch_size: int
    ended_by: str


def largest_batch(
    fits: Callable[[int], bool], batch_size: int, samples: int, free_bytes: int | None, seconds: float
) -> Largest:
    """Doubles the batch as long as it fits.

    Args:
        fits: trains on some batches of a size; False: a device's memory is too small for it.
        batch_size: that is there; it is tried, too, to see what a larger one will take.
        samples: of the training partition.
        free_bytes: of the main memory, None where that is not known.
        seconds: that all attempts may take together, about.
    """
    begin = time.perf_counter()
    reached, following = batch_size, batch_size
    while True:
        with _grown() as grown:
            if not fits(following):
                return Largest(reached, f"the device's memory is too small for {following}")
        reached, following = following, 2 * following
        if following > samples:
            return Largest(reached, f"there are {samples:,} samples")
        # what a batch takes, and so the time for it, doubles with its size
        if free_bytes is not None and 2 * grown[0] > NEAR * free_bytes:
            return Largest(reached, f"{following} would need about {2 * grown[0] / 1e6:,.0f} MB of main memory")
        if 2 * (time.perf_counter() - begin) > seconds:
            return Largest(reached, f"there is no time to try {following}")


@contextmanager
def _grown() -> Iterator[list[int]]:
    """Gives, at its end, the bytes by which this process's memory was larger meanwhile than before."""
    before = psutil.Process().memory_info().rss
    with suppress(OSError):  # not Linux, or not allowed: the highest of all time counts, which is on the safe side
        (_PROCESS / "clear_refs").write_text("5")
    grown = [0]
    yield grown
    grown[0] = max(0, _peak() - before)


def _peak() -> int:
    """Highest resident memory, bytes.

    Source: Linux kernel documentation, filesystems/proc.rst (clear_refs, VmHWM).
    """
    with suppress(OSError):
        for line in (_PROCESS / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return int(psutil.Process().memory_info().rss)
