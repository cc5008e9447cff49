"""The machine during a run: free cores, queueing threads, memory, the age of the process. Partly Linux only."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil

from feedrate.timing.epoch_times import Setup

INTERVAL_S = 0.5  # of one measurement of the free cores; Linux counts idle time in steps of 10 ms for each core
MOST_INTERVALS = 20_000  # that are kept, the last ones

WorkerID = tuple[int, int]  # process ID and thread ID


class FreeCores:
    """Free cores in intervals of a run: those it used and those that were idle. Linux only."""

    def __init__(self) -> None:
        self._intervals: deque[tuple[float, float]] = deque(maxlen=MOST_INTERVALS)  # seconds, free core seconds
        self._open = (0.0, 0.0)
        self._since: tuple[float, float, dict[WorkerID, float]] | None = None

    def begin(self, workers: Iterable[WorkerID]) -> None:
        """Starts measuring."""
        self._since = self._now(workers) if sys.platform == "linux" else None

    @property
    def due(self) -> bool:
        """Whether the present interval is long enough."""
        return self._since is not None and time.perf_counter() - self._since[0] >= INTERVAL_S

    def measure(self, workers: Iterable[WorkerID]) -> None:
        """Counts the time until now, unless a worker has ended, whose CPU time is unknown then."""
        if self._since is None:
            return
        (begin, idle_and_own, before), now = self._since, self._now(workers)
        self._since = now
        if not before.keys() <= now[2].keys():
            return
        by_workers = sum(seconds - before.get(worker, 0.0) for worker, seconds in now[2].items())
        self._open = self._open[0] + now[0] - begin, self._open[1] + now[1] - idle_and_own + by_workers
        if self._open[0] >= INTERVAL_S:
            self._intervals.append(self._open)
            self._open = (0.0, 0.0)

    def end(self) -> None:
        """Stops measuring; the time since the last `measure` does not count."""
        self._since = None

    def mean(self) -> float | None:
        """Mean number of free cores; None if unknown."""
        seconds, core_s = np.sum([self._open, *self._intervals], axis=0).tolist()
        return core_s / seconds if seconds else None

    def range(self) -> tuple[float, float] | None:
        """10th and 90th percentile of the free cores; None with fewer than two intervals."""
        if len(self._intervals) < 2:
            return None
        low, high = np.percentile([core_s / seconds for seconds, core_s in self._intervals], [10, 90])
        return float(low), float(high)

    def applied_to(self, setup: Setup) -> Setup:
        """The setup with the free cores, at least one; unchanged if they are unknown."""
        if (free := self.mean()) is None:
            return setup
        return replace(setup, cores=max(1.0, min(setup.cores, free)), free_cores=free, free_range=self.range())

    @staticmethod
    def _now(workers: Iterable[WorkerID]) -> tuple[float, float, dict[WorkerID, float]]:
        others = [worker for worker in workers if worker[0] != os.getpid()]
        cpu_s = {worker: cpu for worker in others if (cpu := _cpu_and_queued_ns(*worker)[0] / 1e9) > 0}
        return time.perf_counter(), _idle_s() + time.process_time(), cpu_s


def _idle_s() -> float:
    """Idle time of the usable cores, summed."""
    cores = psutil.cpu_times(percpu=True)
    usable = psutil.Process().cpu_affinity() if hasattr(psutil.Process, "cpu_affinity") else range(len(cores))
    return float(sum(cores[core].idle + getattr(cores[core], "iowait", 0.0) for core in usable if core < len(cores)))


def _cpu_and_queued_ns(process: int, thread: int) -> tuple[int, int]:
    """CPU time of a thread, and its time in the run queue; 0 if it has ended.

    Source: /proc/PID/task/TID/schedstat, Linux's Documentation/scheduler/sched-stats.
    """
    with contextlib.suppress(OSError, ValueError):
        cpu, queued, _ = Path(f"/proc/{process}/task/{thread}/schedstat").read_text().split()
        return int(cpu), int(queued)
    return 0, 0


def queued_s(workers: Iterable[WorkerID]) -> float:
    """Time in which these workers were ready to run but had no core, summed, seconds; 0 if unknown."""
    return sum(_cpu_and_queued_ns(*worker)[1] for worker in workers) / 1e9


def queued_ns() -> int:
    """The same for this thread, nanoseconds."""
    return _cpu_and_queued_ns(os.getpid(), threading.get_native_id())[1]


def seconds_since_start() -> float:
    """Age of this process; on Linux exact to 10 ms, where psutil would add a time of boot in whole seconds.

    Source: starttime, field 22 of /proc/PID/stat, in clock ticks since boot; proc_pid_stat(5).
    """
    if sys.platform != "linux":
        return time.time() - float(psutil.Process().create_time())
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()  # from the third on; the second is a name
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[22 - 3]) / os.sysconf("SC_CLK_TCK")


def own_memory_mb(workers: Iterable[WorkerID]) -> float:
    """Resident memory of this process and its worker processes, on Linux without files and shared memory, MB."""
    found = 0
    for process in {os.getpid(), *(process for process, _ in workers)}:
        with contextlib.suppress(psutil.Error):
            memory = psutil.Process(process).memory_info()
            found += memory.rss - getattr(memory, "shared", 0)
    return found / 1e6
