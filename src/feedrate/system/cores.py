"""How many cores this process may use, by affinity and control-group quota."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from feedrate.system.control_groups import group_folders


def usable_cores(system: Path = Path("/")) -> int:
    """Number of cores, at least 1. A quota of 1.5 cores counts as 2, since a second worker still gets time.

    Args:
        system: root of the file system, below which /proc and /sys are read.

    Source: Linux kernel documentation, admin-guide/cgroup-v2.rst (cpu.max) and scheduler/sched-bwc.rst
    (cpu.cfs_quota_us).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for quota_us, period_us in _quotas(system):
        cores = min(cores, -(-quota_us // period_us))
    return max(1, cores)


def _quotas(system: Path) -> Iterator[tuple[int, int]]:
    """Quota and period in microseconds of every limit on this process's group and on those above it."""
    for version, folder in group_folders("cpu", system):
        if version == 2:
            yield from _limit(folder / "cpu.max")
        else:
            yield from _limit(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us")


def _limit(*files: Path) -> Iterator[tuple[int, int]]:
    try:
        quota_us, period_us = " ".join(file.read_text() for file in files).split()
        if quota_us not in ("max", "-1"):
            yield int(quota_us), int(period_us)
    except (OSError, ValueError):
        return
