"""Memory that this process can still allocate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

from feedrate.system.cores import group_folders

_NO_LIMIT = 1 << 60  # bytes; version 1 of control groups writes a number near 2**63 where there is no limit


def free_memory(system: Path = Path("/")) -> int:
    """Bytes that can be allocated without swapping: of the machine and of its control groups.

    Args:
        system: root of the file system, below which /proc and /sys are read.
    """
    return min([int(psutil.virtual_memory().available), *_group_memory(system)])


def _group_memory(system: Path) -> Iterator[int]:
    """Bytes left in each control group; page cache counts as left, since the kernel frees it first.

    Source: Linux kernel documentation, admin-guide/cgroup-v2.rst and admin-guide/cgroup-v1/memory.rst.
    """
    for version, folder in group_folders("memory", system):
        names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        kind = "" if version == 2 else "total_"  # including the groups below
        try:
            limit, used = (int((folder / name).read_text()) for name in names)
            rows = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            cached = sum(int(rows[f"{kind}{age}_file"]) for age in ("active", "inactive"))
        except (OSError, ValueError, KeyError):  # no such group, or "max"
            continue
        if limit < _NO_LIMIT:
            yield max(0, limit - used + cached)
