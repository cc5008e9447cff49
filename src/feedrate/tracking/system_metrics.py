"""Readings of the machine and of the run's processes over time, for the "System metrics" tab of the run's page.

The uploader's process takes them, so that training does not. Those of the machine are MLflow's own, under its names.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from feedrate.tracking.journal import SYSTEM, Journal, as_json, events

MEMORY_SHARE = 0.001  # of a core, for reading memory: the system walks through every page of every process for it


class SystemReadings:
    """Takes readings on a thread until `stop`, into a journal of their own.

    The interval, s, is MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL.

    Args:
        folder: the run folder.
        training: number of the training process.
    """

    def __init__(self, folder: Path, training: int) -> None:
        self._processes = ProcessTree(training)
        self._interval_s = float(os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL") or 1)
        self._step = sum(1 for _ in events(folder / SYSTEM))  # of a resumed run
        self._journal = Journal(folder, SYSTEM)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feedrate-system-metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Takes the last readings and ends the thread."""
        self._stopping.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        monitors = _monitors()
        for monitor in monitors:
            monitor.collect_metrics()  # processor use is counted from the call before: this one begins it
            monitor.clear_metrics()
        while not self._stopping.wait(self._interval_s):
            self._read(monitors)
        self._read(monitors, last=True)

    def _read(self, monitors: list[Any], last: bool = False) -> None:
        now = time.time_ns() // 1_000_000
        found: dict[str, float] = {}
        for monitor in monitors:
            monitor.collect_metrics()
            found |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        found |= self._processes.read(last)
        rows = [[f"system/{name}", as_json(float(f"{value:.6g}")), self._step, now] for name, value in found.items()]
        self._journal.write("metrics", points=rows)
        self._step += 1


def _monitors() -> list[Any]:
    """MLflow's monitors (untyped) of what this machine has."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
    from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

    found = []
    for kind in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor, ROCMMonitor):
        with suppress(Exception):  # there is no such device, or no library for it
            found.append(kind())
    return found


class _Used(NamedTuple):
    """What a process has used since its start."""

    cpu_s: float = 0.0
    read_bytes: int = 0
    disk_bytes: int = 0


class ProcessTree:
    """Reads a process and all its descendants, except the process that reads; rates are since the reading before.

    Args:
        main: number of the training process.
    """

    def __init__(self, main: int) -> None:
        self._main = main
        self._known: dict[int, psutil.Process] = {}
        self._next_memory = 0.0
        self._at, self._before = time.monotonic(), self._read_used()

    def read(self, last: bool = False) -> dict[str, float]:
        """Values by name with their unit; empty when the main process is gone.

        Memory is read as often as `MEMORY_SHARE` allows, and if it is the `last` reading.
        """
        at, used = time.monotonic(), self._read_used()
        elapsed_s, before = at - self._at, self._before
        self._at, self._before = at, used
        if self._main not in used or elapsed_s <= 0:
            return {}
        spent = {pid: _since(now, before.get(pid, _Used())) for pid, now in used.items()}
        workers_cpu_s = sum(one.cpu_s for pid, one in spent.items() if pid != self._main)
        found = {
            "process_count": float(len(spent)),
            "process_cpu_cores": (spent[self._main].cpu_s + workers_cpu_s) / elapsed_s,
            "process_worker_cpu_cores": workers_cpu_s / elapsed_s,
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
        ahead = [self._main]
        while ahead:
            pid = ahead.pop()
            if pid == os.getpid() != self._main:
                continue
            ahead += _children(pid)
            with suppress(psutil.Error, OSError):  # it has ended meanwhile
                process = known.get(pid) or psutil.Process(pid)
                found[pid] = _used(process)
                self._known[pid] = process
        return found

    def _read_memory(self) -> dict[str, float]:
        """Memory of the processes; what several share is divided among them (Linux)."""
        sizes: dict[int, int] = {}
        for pid, process in self._known.items():
            with suppress(psutil.Error, OSError):
                full = process.memory_full_info()
                sizes[pid] = getattr(full, "pss", full.uss)
        if self._main not in sizes:
            return {}
        total = sum(sizes.values())
        return {"process_memory_mb": total / 1e6, "process_worker_memory_mb": (total - sizes[self._main]) / 1e6}


def _used(process: psutil.Process) -> _Used:
    times = process.cpu_times()
    read_bytes = disk_bytes = 0
    with suppress(psutil.AccessDenied, AttributeError):  # of another user; not known on this system
        counters = process.io_counters()
        read_bytes, disk_bytes = counters.read_chars, counters.read_bytes
    return _Used(times.user + times.system, read_bytes, disk_bytes)


def _since(now: _Used, before: _Used) -> _Used:
    if now.cpu_s < before.cpu_s:  # another process with the number of one that has ended
        before = _Used()
    return _Used(now.cpu_s - before.cpu_s, now.read_bytes - before.read_bytes, now.disk_bytes - before.disk_bytes)


def _children(pid: int) -> list[int]:
    """Numbers of the processes that a process has started; on Linux from its threads, as psutil reads all processes."""
    threads = Path(f"/proc/{pid}/task")
    children: list[int] = []
    try:
        for thread in os.listdir(threads):  # noqa: PTH208
            with suppress(ProcessLookupError):
                children += map(int, (threads / thread / "children").read_text().split())
    except OSError:
        with suppress(psutil.Error):
            return [child.pid for child in psutil.Process(pid).children()]
    return children
