"""Checks before workers start: memory, /dev/shm and file descriptors must suffice for the batches in flight."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from feedrate.dataset.subset import size_of
from feedrate.errors import UserError
from feedrate.system.cores import group_folders

NEAR = 0.8  # share of what is free above which a note is printed; above all of it is an error
FORKED_BYTES, SPAWNED_BYTES = 20_000_000, 170_000_000  # memory of a worker besides its batches
FILES_OF_WORKER = 4  # its queues and sentinels
OTHER_FILES = 64  # log, checkpoints, the device's driver
_NO_LIMIT = 1 << 60  # bytes; version 1 of control groups writes a number near 2**63 where there is no limit


def check_resources(loaders: Sequence[Any], sample_bytes: int, processes: bool, forked: bool, exact: bool) -> str:
    """A note if the loaders need more than `NEAR` of what is free, else "".

    Args:
        sample_bytes: X and y of one sample.
        processes: whether the workers are processes; `forked`: started by fork.
        exact: whether batches are as large as their samples; otherwise nothing is an error.

    Raises:
        UserError: the largest loader alone needs more than is free.
    """
    first, workers = loaders[0], loaders[0].num_workers
    flying = [_in_flight(loader) for loader in loaders]
    batches = [n * sample_bytes * min(loader.batch_size or 1, size_of(loader.dataset))
               for n, loader in zip(flying, loaders, strict=True)]  # fmt: skip
    own = workers * (FORKED_BYTES if forked else SPAWNED_BYTES) if processes else 0
    rows = [_Row(sum(batches) + len(loaders) * own, max(batches) + own, free_memory(), "memory", "add memory")]
    if processes:
        if (free := free_shared_memory()) is not None:
            rows.append(_Row(sum(batches), max(batches), free, "shared memory (/dev/shm)", "enlarge /dev/shm"))
        if (files := _free_descriptors()) is not None:
            needed = len(loaders) * workers * FILES_OF_WORKER
            rows.append(_Row(needed + sum(flying), needed, files, "open files", "raise the limit (ulimit -n)"))
    short = [row for row in rows if exact and row.sure > row.free]
    row = max(short or rows, key=lambda row: row.needed / max(1, row.free))
    if row.needed <= NEAR * row.free:
        return ""
    size = str if row.what == "open files" else shown
    names = ("num_workers", "prefetch_factor", "batch_size") if workers else ("batch_size",)
    settings = " ".join(f"loader.{name}={getattr(first, name)}" for name in names)
    text = f"{settings} may take {size(row.needed)} of {row.what}, and {size(row.free)} are free"
    remedy = f"lower {'one of them' if workers else 'it'}, or {row.remedy}"
    if short:
        raise UserError(f"{text}; {remedy}")
    return f"note: {text}; {remedy}"


class _Row(NamedTuple):
    """A resource: what the largest loader needs (`sure`), what all loaders need, and what is free."""

    needed: int
    sure: int
    free: int
    what: str
    remedy: str


def _in_flight(loader: Any) -> int:
    """Batches in memory: prefetched, being loaded, and in use."""
    ahead = batches_in_flight(loader.num_workers, loader.prefetch_factor or 2)
    return ahead if loader.persistent_workers else min(ahead, len(loader))


def batches_in_flight(workers: int, prefetch_factor: int) -> int:
    """Batches of a loader that are in memory at most: prefetched, being made, and in use."""
    return workers * (prefetch_factor + 1) + 2


def free_shared_memory() -> int | None:
    """Free bytes of /dev/shm, None where there is none."""
    try:
        found = os.statvfs("/dev/shm")
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def free_memory(system: Path = Path("/")) -> int:
    """Bytes that this process can still allocate without swapping: of the machine and of its control groups.

    Args:
        system: root of the file system, below which /proc and /sys are read.
    """
    return min([int(psutil.virtual_memory().available), *_group_memory(system)])


def shown(nbytes: float) -> str:
    """A size in words, such as '1.5 GB' or '230 MB'."""
    if nbytes >= 1e9:
        return f"{nbytes / 1e9:,.1f} GB"
    return f"{nbytes / 1e6:,.0f} MB" if nbytes >= 1e7 else f"{nbytes / 1e6:.1f} MB"


def _group_memory(system: Path) -> Iterator[int]:
    """Bytes left in each control group; page cache counts as left, since the kernel gives it up first.

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


def _free_descriptors() -> int | None:
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        opened = len(os.listdir("/dev/fd"))  # noqa: PTH208
    except (ImportError, OSError):
        return None
    return None if limit == resource.RLIM_INFINITY else max(0, limit - opened - OTHER_FILES)
