"""Limits of this process: the cores that it may use, and where the limits of its control group stand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath


def usable_cores(system: Path = Path("/")) -> int:
    """Number of cores by affinity and control-group quota, at least 1; a quota of 1.5 counts as 2.

    Source: Linux kernel documentation, admin-guide/cgroup-v2.rst and scheduler/sched-bwc.rst.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for version, folder in group_folders("cpu", system):
        names = ["cpu.max"] if version == 2 else ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        with suppress(OSError, ValueError):  # no such group, or "max"
            quota_us, period_us = map(int, " ".join((folder / name).read_text() for name in names).split())
            if quota_us > 0:
                cores = min(cores, -(-quota_us // period_us))
    return max(1, cores)


def group_folders(controller: str, system: Path = Path("/")) -> Iterator[tuple[int, Path]]:
    """Version, 1 or 2, and folder of each group whose limit of this kind ('cpu', 'memory') holds; it may not exist.

    Source: cgroups(7); Linux kernel documentation, admin-guide/cgroup-v2.rst.
    """
    try:
        lines = (system / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    mounts = system / "sys/fs/cgroup"
    for line in lines:
        _, controllers, group = line.split(":", 2)
        # In a container the group's path may be that of the host and not exist here; its limit is then at the top.
        here = PurePosixPath(group.lstrip("/"))
        for path in (here, *here.parents):
            if not controllers:
                yield 2, mounts / path
            elif controller in controllers.split(","):
                yield 1, mounts / controller / path
