"""Memory of a tree of processes. Linux only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil


def tree(pid: int) -> Iterator[psutil.Process]:
    """A process and its descendants, without those that have ended."""
    with suppress(psutil.Error):
        me = psutil.Process(pid)
        for process in (me, *me.children(recursive=True)):
            with suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE:
                    yield process


def tree_mb(pid: int) -> float:
    """Anonymous and shared memory of a process tree, each page once (PSS), MB.

    Pages of files are left out: they belong to the page cache.
    """
    total = 0
    for process in tree(pid):
        with suppress(OSError):
            for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
                if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                    total += int(line.split()[1])
    return total / 1e3
