"""Processor, memory, disk, network and GPU use over time, for the page's "System metrics" tab.

MLflow's own monitor queries and writes its store every second while training runs; here readings are only
taken, and the tracker sends them with the next metrics. They are of the whole machine, under MLflow's names.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.entities import Metric

MAX_READINGS = 100_000  # two hours without a fetch; after that the oldest go


class SystemReadings:
    """Takes readings on a thread of its own until `stop`: one per interval and one at the end."""

    def __init__(self) -> None:
        """Begin. Seconds between readings come from MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL."""
        self._interval_s = float(os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL") or 1)
        self._taken: deque[Metric] = deque(maxlen=MAX_READINGS)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feedrate-system-metrics", daemon=True)
        self._thread.start()

    def fetch(self) -> list[Metric]:
        """The readings taken since the last call."""
        return [self._taken.popleft() for _ in range(len(self._taken))]

    def stop(self) -> list[Metric]:
        """End the thread; returns the last readings."""
        self._stopping.set()
        self._thread.join(timeout=5)
        return self.fetch()

    def _run(self) -> None:
        monitors = _monitors()
        for monitor in monitors:
            monitor.collect_metrics()  # processor use is counted from the call before: this one begins it
            monitor.clear_metrics()
        step = 0
        while not self._stopping.wait(self._interval_s):
            self._read(monitors, step)
            step += 1
        self._read(monitors, step)

    def _read(self, monitors: list[Any], step: int) -> None:
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        for monitor in monitors:
            monitor.collect_metrics()
            for name, value in monitor.aggregate_metrics().items():
                self._taken.append(Metric(f"system/{name}", float(f"{value:.6g}"), now, step))
            monitor.clear_metrics()


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
