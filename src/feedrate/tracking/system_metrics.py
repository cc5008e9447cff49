"""Readings of the machine and of the run's processes over time, for the "System metrics" tab of the run's page.

The uploader's process takes them, so that training does not. Those of the machine are MLflow's own, under its names.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from feedrate.tracking.journal import SYSTEM, Journal, events

MEMORY_SHARE = 0.001  # of a core, for reading memory: the system walks through every page of every process for it
TOGETHER = 10  # readings that are written at once


class SystemReadings:
    """Takes readings into a journal of their own, every MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL seconds."""

    def __init__(self, folder: Path, training: int) -> None:
        self._machine = _monitors()
        self._processes = ProcessTree(training)
        self._interval_s = float(os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL") or 1)
        self._next = time.monotonic() + self._interval_s
        self._step = sum(1 for _ in events(folder / SYSTEM))  # of a resumed run
        self._journal = Journal(folder, SYSTEM)
        self._taken: list[dict[str, Any]] = []
        self._read_machine()  # processor use is measured since the previous call: this is the first

    def take(self, last: bool = False) -> None:
        """Takes a reading if it is time, and in any case the last one."""
        if not last and time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._interval_s
        found = {**self._read_machine(), **self._processes.read(last)}
        values = {f"system/{name}": float(f"{value:.6g}") for name, value in found.items()}
        self._taken.append({"step": self._step, "time_ms": time.time_ns() // 1_000_000, "values": values})
        self._step += 1
        if last or len(self._taken) >= TOGETHER:
            for reading in self._taken:
                self._journal.write("metrics", **reading)
            self._taken.clear()

    def _read_machine(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for monitor in self._machine:
            monitor.collect_metrics()
            found |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        return found


def _monitors() -> list[Any]:
    """MLflow's monitors (untyped) of what this machine has. Its SystemMetricsMonitor would make a store of its own."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
    from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

    found: list[Any] = []
    kinds: tuple[Any, ...] = (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor, ROCMMonitor)
    for kind in kinds:
        with suppress(Exception):  # no such device, or its library is missing
            found.append(kind())
    return found


class ProcessTree:
    """Reads the process `main` and all its descendants, except the process that reads."""

    def __init__(self, main: int) -> None:
        self._main = main
        self._next_memory = 0.0
        self._at, self._before = time.monotonic(), _used(self._processes())

    def read(self, last: bool = False) -> dict[str, float]:
        """Values by name with their unit, rates since the reading before; empty when the main process is gone."""
        processes = self._processes()
        at, used, before = time.monotonic(), _used(processes), self._before
        elapsed_s = at - self._at
        self._at, self._before = at, used
        if self._main not in used or elapsed_s <= 0:
            return {}
        new = (0.0, 0.0, 0.0)
        # a process with less than before has the number of one that has ended
        spent = {
            pid: [max(0.0, now - then) for now, then in zip(all_, before.get(pid, new), strict=True)]
            for pid, all_ in used.items()
        }
        cpu, read, disk = (sum(column) / elapsed_s for column in zip(*spent.values(), strict=True))
        found = {
            "process_count": float(len(spent)),
            "process_cpu_cores": cpu,
            "process_worker_cpu_cores": cpu - spent[self._main][0] / elapsed_s,
            "process_read_mb_per_s": read / 1e6,
            "process_disk_read_mb_per_s": disk / 1e6,
        }
        if last or at >= self._next_memory:
            begin = time.thread_time()
            found |= self._read_memory(processes)
            self._next_memory = at + (time.thread_time() - begin) / MEMORY_SHARE
        return found

    def _processes(self) -> list[psutil.Process]:
        try:
            main = psutil.Process(self._main)
            return [one for one in (main, *main.children(recursive=True)) if one.pid != os.getpid() or one == main]
        except psutil.Error:  # it has ended
            return []

    def _read_memory(self, processes: list[psutil.Process]) -> dict[str, float]:
        """Memory of the processes; what several share is divided among them (Linux)."""
        sizes: dict[int, int] = {}
        for process in processes:
            with suppress(psutil.Error, OSError):
                full = process.memory_full_info()
                sizes[process.pid] = getattr(full, "pss", full.uss)
        total = sum(sizes.values())
        return {"process_memory_mb": total / 1e6, "process_worker_memory_mb": (total - sizes.get(self._main, 0)) / 1e6}


def _used(processes: list[psutil.Process]) -> dict[int, tuple[float, float, float]]:
    """CPU seconds, bytes read and bytes read from disk of each process since its start."""
    found = {}
    for process in processes:
        with suppress(psutil.Error, OSError):  # it has ended meanwhile
            times = process.cpu_times()
            found[process.pid] = (times.user + times.system, 0.0, 0.0)
            with suppress(AttributeError):  # not known on this system
                counters = process.io_counters()
                found[process.pid] = (times.user + times.system, counters.read_chars, counters.read_bytes)
    return found
