"""Processor, memory, disk, network and GPU use over time, for the page's "System metrics" tab.

MLflow's own monitor runs in the training process and writes to its store every second; here the uploader takes the
readings, into a journal of their own: of the whole machine, under MLflow's names, and of the run's own processes.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from feedrate.tracking.journal import SYSTEM, Journal, as_json, events
from feedrate.tracking.process_tree import ProcessTree


class SystemReadings:
    """Takes readings on a thread of its own until `stop`: one per interval and one at the end.

    Seconds between readings come from MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL.

    Args:
        folder: of the run, for its journal.
        training: number of the process whose use is read, with that of the processes it has started.
    """

    def __init__(self, folder: Path, training: int) -> None:
        self._processes = ProcessTree(training)
        self._interval_s = float(os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL") or 1)
        self._first = sum(1 for _ in events(folder / SYSTEM))  # of a run that goes on
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
        step = self._first
        while not self._stopping.wait(self._interval_s):
            self._read(monitors, step)
            step += 1
        self._read(monitors, step, last=True)

    def _read(self, monitors: list[Any], step: int, last: bool = False) -> None:
        now = time.time_ns() // 1_000_000
        found: dict[str, float] = {}
        for monitor in monitors:
            monitor.collect_metrics()
            found |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        found |= self._processes.read(last)
        rows = [[f"system/{name}", as_json(float(f"{value:.6g}")), step, now] for name, value in found.items()]
        self._journal.write("metrics", points=rows)


def _monitors() -> list[Any]:
    """MLflow's readers (untyped) of what this machine has."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
    from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

    found = []
    for kind in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor, ROCMMonitor):
        with suppress(Exception):  # each says in its own way that there is no such device, or no library
            found.append(kind())
    return found
