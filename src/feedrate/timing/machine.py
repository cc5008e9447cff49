"""What the machine did while a run trained: cores that were idle, threads that queued for one, what the disk gave.

As Linux counts it; elsewhere nothing is known of the queue, and it counts as none.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

Task = tuple[int, int]  # process and thread, as the system numbers them


@dataclass(frozen=True)
class Machine:
    """Seconds since some instant.

    Attributes:
        seconds: that passed.
        idle_s: of all cores that this process may use, together.
        workers_queued_s: that the loader's workers, all together, could have run but had no core.
        helpers_s: that the threads computed which take batches over for the main process, all together.
        read_mb: that this process and those of the workers read and the page cache did not hold, megabytes.
    """

    seconds: float = 0.0
    idle_s: float = 0.0
    workers_queued_s: float = 0.0
    helpers_s: float = 0.0
    read_mb: float = 0.0

    @staticmethod
    def now(workers: Iterable[Task], helpers: Iterable[Task] = ()) -> Machine:
        """Since the machine started; differences count."""
        main = os.getpid(), threading.main_thread().native_id or os.getpid()
        workers = list(workers)
        read_mb = _read_mb([main, *workers])
        helpers_s, (_, queued_s) = _ran_s(helpers)[0], _ran_s(workers)
        return Machine(time.perf_counter(), _idle_s(), queued_s, helpers_s, read_mb)

    def __sub__(self, other: Machine) -> Machine:
        return Machine(
            self.seconds - other.seconds,
            max(0.0, self.idle_s - other.idle_s),
            max(0.0, self.workers_queued_s - other.workers_queued_s),
            max(0.0, self.helpers_s - other.helpers_s),
            max(0.0, self.read_mb - other.read_mb),
        )

    def __add__(self, other: Machine) -> Machine:
        return Machine(
            self.seconds + other.seconds,
            self.idle_s + other.idle_s,
            self.workers_queued_s + other.workers_queued_s,
            self.helpers_s + other.helpers_s,
            self.read_mb + other.read_mb,
        )


def _idle_s() -> float:
    cores = psutil.cpu_times(percpu=True)
    usable = psutil.Process().cpu_affinity() if hasattr(psutil.Process, "cpu_affinity") else range(len(cores))
    return float(sum(cores[core].idle + getattr(cores[core], "iowait", 0.0) for core in usable if core < len(cores)))


def _ran_s(tasks: Iterable[Task]) -> tuple[float, float]:
    """Seconds that all tasks together computed, and that they stood in the queue; those that are gone count as none.

    Source: the first numbers of /proc/PID/task/TID/schedstat, Linux's Documentation/scheduler/sched-stats.
    """
    computed = queued = 0
    for process, thread in tasks:
        with contextlib.suppress(OSError, ValueError, IndexError):
            times = Path(f"/proc/{process}/task/{thread}/schedstat").read_text().split()
            computed, queued = computed + int(times[0]), queued + int(times[1])
    return computed / 1e9, queued / 1e9


def queued_ns() -> int:
    """That this thread could have run until now but had no core; 0 where the system does not tell."""
    return round(1e9 * _ran_s([(os.getpid(), threading.get_native_id())])[1])


def _read_mb(tasks: Iterable[Task]) -> float:
    """Of all their processes together, from storage; those that are gone count as none."""
    found = 0
    for process in {process for process, _ in tasks}:
        with contextlib.suppress(psutil.Error, AttributeError):  # not every system counts that
            found += psutil.Process(process).io_counters().read_bytes
    return found / 1e6
