"""How many cores this process may use: affinity and control-group quota, not the machine's count."""

from __future__ import annotations

import os
from pathlib import Path

_V2 = Path("/sys/fs/cgroup/cpu.max")
_V1 = Path("/sys/fs/cgroup/cpu")


def usable_cores() -> int:
    """At least 1. A quota of 1.5 cores counts as 2, since a second worker would still find time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return max(1, min(cores, -(-quota[0] // quota[1]))) if quota else cores


def _quota() -> tuple[int, int] | None:
    """Microseconds of CPU time for each period of microseconds, None without a limit."""
    try:
        if _V2.is_file():
            quota, period = _V2.read_text().split()
            return None if quota == "max" else (int(quota), int(period))
        quota_us = int((_V1 / "cpu.cfs_quota_us").read_text())
        return None if quota_us <= 0 else (quota_us, int((_V1 / "cpu.cfs_period_us").read_text()))
    except (OSError, ValueError):
        return None
