"""What the processes of a run use: processor, memory and reads, of the training process and of its loader's workers.

The machine as a whole is read by MLflow's monitors; where all readings go is system.py's affair.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

MEMORY_SHARE = 0.001  # of a core, for reading memory: the system walks through every page of every process for it


class _Used(NamedTuple):
    """What a process has used since its start."""

    cpu_s: float = 0.0
    read_bytes: int = 0
    disk_bytes: int = 0


class ProcessTree:
    """Reads a process and all that it has started, directly or not; rates are those since the reading before.

    The process that reads, the uploader, is left out with what it started, unless it is the main one.

    Args:
        main: number of the training process.
    """

    def __init__(self, main: int) -> None:
        self._main = main
        self._known: dict[int, psutil.Process] = {}
        self._next_memory = 0.0
        self._at, self._before = time.monotonic(), self._read_used()

    def read(self, last: bool = False) -> dict[str, float]:
        """Values by name, unit included; nothing when the main process is gone.

        Memory is missing in most readings: it is read as often as `MEMORY_SHARE` allows.

        Args:
            last: of the run, so that memory is read in any case.
        """
        at, used = time.monotonic(), self._read_used()
        elapsed_s, before = at - self._at, self._before
        self._at, self._before = at, used
        if self._main not in used or elapsed_s <= 0:
            return {}
        spent = {pid: _since(now, before.get(pid, _Used())) for pid, now in used.items()}
        workers = [one for pid, one in spent.items() if pid != self._main]
        main = spent[self._main]
        found = {
            "process_count": float(len(spent)),
            "process_cpu_cores": (main.cpu_s + sum(one.cpu_s for one in workers)) / elapsed_s,
            "process_worker_cpu_cores": sum(one.cpu_s for one in workers) / elapsed_s,
            "process_read_mb_per_s": sum(one.read_bytes for one in spent.values()) / 1e6 / elapsed_s,
            "process_disk_read_mb_per_s": sum(one.disk_bytes for one in spent.values()) / 1e6 / elapsed_s,
        }
        if last or at >= self._next_memory:
            begin = time.thread_time()
            found |= self._read_memory()
            self._next_memory = at + (time.thread_time() - begin) / MEMORY_SHARE
        return found

    def _read_used(self) -> dict[int, _Used]:
        found: dict[int, _Used] = {}
        known, self._known = self._known, {}
        for pid in _tree(self._main, without=os.getpid()):
            with suppress(psutil.Error, OSError):  # it has ended meanwhile
                process = known.get(pid) or psutil.Process(pid)
                found[pid] = _used(process)
                self._known[pid] = process
        return found

    def _read_memory(self) -> dict[str, float]:
        """Memory of each process, what several share divided among them."""
        sizes: dict[int, int] = {}
        for pid, process in self._known.items():
            with suppress(psutil.Error, OSError):
                full = process.memory_full_info()
                sizes[pid] = getattr(full, "pss", full.uss)  # other systems than Linux know no shares
        if self._main not in sizes:
            return {}
        workers = sum(size for pid, size in sizes.items() if pid != self._main)
        return {"process_memory_mb": sum(sizes.values()) / 1e6, "process_worker_memory_mb": workers / 1e6}


def _used(process: psutil.Process) -> _Used:
    times = process.cpu_times()
    read_bytes = disk_bytes = 0
    with suppress(psutil.AccessDenied, AttributeError):  # of another user; no such figures on this system
        counters = process.io_counters()
        read_bytes, disk_bytes = counters.read_chars, counters.read_bytes
    return _Used(times.user + times.system, read_bytes, disk_bytes)


def _since(now: _Used, before: _Used) -> _Used:
    if now.cpu_s < before.cpu_s:  # another process that has got the number of one that ended
        before = _Used()
    return _Used(now.cpu_s - before.cpu_s, now.read_bytes - before.read_bytes, now.disk_bytes - before.disk_bytes)


def _tree(main: int, without: int) -> list[int]:
    """Numbers of the process and of all below it."""
    found, ahead = [], [main]
    while ahead:
        pid = ahead.pop()
        if pid == main or pid != without:
            found.append(pid)
            ahead += _children(pid)
    return found


def _children(pid: int) -> list[int]:
    """Numbers of the processes that a process has started.

    Linux lists them by thread; psutil would look at each process of the machine.
    """
    threads = Path(f"/proc/{pid}/task")
    children: list[int] = []
    try:
        for thread in os.listdir(threads):  # noqa: PTH208
            with suppress(ProcessLookupError):  # that thread has ended meanwhile
                children += map(int, (threads / thread / "children").read_text().split())
    except OSError:
        with suppress(psutil.Error):
            return [child.pid for child in psutil.Process(pid).children()]
    return children
