"""Memory and processes of this process and its workers, for test_memory.py."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import psutil


def own_bytes(processes: list[psutil.Process], *kinds: str) -> int:
    """Memory of processes, of the kinds that Linux names Pss_...; shared pages count once."""
    found = 0
    for process in processes:
        with suppress(OSError):  # it has ended meanwhile
            for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
                kind, _, size = line.partition(":")
                found += int(size.split()[0]) * 1024 if kind in kinds else 0
    return found


def workers() -> list[psutil.Process]:
    """The loaders' own, without the helpers of Python's multiprocessing."""
    servers = ("import main; main(", "resource_tracker")
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            command = " ".join(process.cmdline())
            if process.ppid() != os.getpid() or not any(server in command for server in servers):
                found.append(process)
    return found
