"""tune.batch_size=true doubles the batch until something sets a limit, and names it."""

from __future__ import annotations

import psutil
import pytest

from feedrate.tuning import max_batch_size
from feedrate.tuning.max_batch_size import largest_batch

MB = 1_000_000


class Takes:
    """Takes a megabyte for each sample, of a device that has so many."""

    def __init__(self, device_mb: float = float("inf")) -> None:
        self.device_mb, self.tried = device_mb, list[int]()

    def __call__(self, batch_size: int) -> bool:
        self.tried.append(batch_size)
        return batch_size <= self.device_mb


def test_it_never_goes_beyond_the_number_of_samples() -> None:
    takes = Takes()
    assert largest_batch(takes, 3, 20, None, 60) == (12, "there are 20 samples")
    assert takes.tried == [3, 6, 12]


def test_a_batch_that_memory_would_not_hold_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    takes, before = Takes(), psutil.Process().memory_info().rss
    monkeypatch.setattr(max_batch_size, "_peak_bytes", lambda: before + takes.tried[-1] * MB)
    assert largest_batch(takes, 16, 10_000, 300 * MB, 60)[0] == 128  # 256 MB are more than 80 % of 300 MB
    assert takes.tried == [16, 32, 64, 128]


def test_a_device_whose_memory_is_too_small_keeps_the_last_one_that_fits() -> None:
    assert largest_batch(Takes(40), 8, 10_000, None, 60) == (32, "the device's memory is too small for 64")


def test_the_time_for_it_ends_it() -> None:
    assert largest_batch(Takes(), 8, 10_000, None, 0) == (8, "there is no time to try 16")
