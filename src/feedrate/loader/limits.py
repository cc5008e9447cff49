"""What this process can still take: cores, memory, shared memory, open files.

What loaders need of it is preflight.py's affair.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from feedrate.system.control_groups import group_folders
from feedrate.system.cores import usable_cores

_NO_LIMIT = 1 << 60  # bytes; version 1 of control groups writes a number near 2**63 where there is none


@dataclass(frozen=True)
class Limits:
    """What is free at one instant; None where the system does not tell.

    Attributes:
        cores: that may be used, by affinity and quota.
        memory: bytes.
        memory_of: what sets that bound: 'the machine', or 'the control group' with its limit.
        shared_memory: bytes that /dev/shm takes.
        open_files: descriptors that may be open at once, those of now included.
        opened: descriptors open now.
    """

    cores: int
    memory: int | None = None
    memory_of: str = "the machine"
    shared_memory: int | None = None
    open_files: int | None = None
    opened: int = 0


def read_limits(system: Path = Path("/")) -> Limits:
    """The limits as they are now.

    Args:
        system: root of the file system, below which /proc, /sys and /dev are read.
    """
    machine = [(free, "the machine") for free in _machine_memory(system)]
    groups = [(free, f"the control group, limited to {shown(limit)},") for free, limit in _group_memory(system)]
    memory, of = min([*machine, *groups], default=(None, "the machine"))
    open_files, opened = _files()
    return Limits(usable_cores(system), memory, of, free_shared_memory(system), open_files, opened)


def free_shared_memory(system: Path = Path("/")) -> int | None:
    """Bytes that /dev/shm still takes, None where it is not a file system."""
    try:
        found = os.statvfs(system / "dev/shm")
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def shown(nbytes: float) -> str:
    """A size in words, such as '1.5 GB' or '230 MB'."""
    if nbytes >= 1e9:
        return f"{nbytes / 1e9:,.1f} GB"
    return f"{nbytes / 1e6:,.0f} MB" if nbytes >= 1e7 else f"{nbytes / 1e6:.1f} MB"


def _machine_memory(system: Path) -> Iterator[int]:
    """Bytes that can be had without swapping, page cache that can be given up included."""
    with suppress(OSError):
        for line in (system / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) * 1024


def _group_memory(system: Path) -> Iterator[tuple[int, int]]:
    """Bytes left and the limit, of each group; page cache is counted as left, since the kernel gives it up first.

    Source: Linux kernel documentation, admin-guide/cgroup-v2.rst and admin-guide/cgroup-v1/memory.rst.
    """
    for version, folder in group_folders("memory", system):
        names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        kind = "" if version == 2 else "total_"  # those of the groups below included
        try:
            limit, used = (int((folder / name).read_text()) for name in names)
            rows = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            cached = sum(int(rows[f"{kind}{age}_file"]) for age in ("active", "inactive"))
        except (OSError, ValueError, KeyError):  # no such group, or "max"
            continue
        if limit < _NO_LIMIT:
            yield max(0, limit - used + cached), limit


def _files() -> tuple[int | None, int]:
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        opened = len(os.listdir("/dev/fd"))  # noqa: PTH208
    except (ImportError, OSError):
        return None, 0
    return (None if limit == resource.RLIM_INFINITY else limit), opened
