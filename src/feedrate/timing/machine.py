"""The machine during a run: free cores, threads that queue for a core, reads from disk. Partly Linux only."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

INTERVAL_S = 0.5  # of one measurement of the free cores; Linux counts idle time in steps of 10 ms for each core
MOST_INTERVALS = 256  # that are kept; above it, pairs are joined

Task = tuple[int, int]  # process and thread ID


class Machine(NamedTuple):
    """Counters of the system; `-` and `+` give differences and sums.

    Attributes:
        seconds: wall time.
        idle_s: idle time of the usable cores, summed.
        workers_queued_s: time in which worker threads were ready to run but had no core, summed.
        helpers_s: CPU time of the threads that receive batches, summed.
        read_mb: megabytes that this process and the workers read from storage.
    """

    seconds: float = 0.0
    idle_s: float = 0.0
    workers_queued_s: float = 0.0
    helpers_s: float = 0.0
    read_mb: float = 0.0

    @staticmethod
    def now(workers: Iterable[Task], helpers: Iterable[Task] = ()) -> Machine:
        main, workers = (os.getpid(), threading.main_thread().native_id or os.getpid()), list(workers)
        queued_s = _cpu_and_queued_s(workers)[1]
        helpers_s = _cpu_and_queued_s(helpers)[0]
        return Machine(time.perf_counter(), _idle_s(), queued_s, helpers_s, _read_mb([main, *workers]))

    def __sub__(self, other: Machine) -> Machine:
        return Machine(*(max(0.0, one - before) for one, before in zip(self, other, strict=True)))

    def __add__(self, other: Machine) -> Machine:  # type: ignore[override]
        return Machine(*(one + more for one, more in zip(self, other, strict=True)))


class FreeCores:
    """Free cores in intervals of a run: those it used and those that were idle. Linux only."""

    def __init__(self) -> None:
        self._intervals: list[tuple[float, float]] = []  # seconds, free core seconds
        self._length_s = INTERVAL_S
        self._open = (0.0, 0.0)
        self._since: tuple[float, float, dict[Task, float]] | None = None

    def begin(self, workers: Iterable[Task]) -> None:
        """Starts measuring."""
        self._since = self._now(workers) if sys.platform == "linux" else None

    @property
    def due(self) -> bool:
        """Whether the present interval is long enough."""
        return self._since is not None and time.perf_counter() - self._since[0] >= self._length_s

    def look(self, workers: Iterable[Task]) -> None:
        """Counts the time until now, unless a worker has ended, whose CPU time is unknown then."""
        if self._since is None:
            return
        (begin, idle_and_own, before), now = self._since, self._now(workers)
        self._since = now
        if not before.keys() <= now[2].keys():
            return
        by_workers = sum(seconds - before.get(task, 0.0) for task, seconds in now[2].items())
        self._open = self._open[0] + now[0] - begin, self._open[1] + now[1] - idle_and_own + by_workers
        if self._open[0] >= self._length_s:
            self._intervals.append(self._open)
            self._open = (0.0, 0.0)
        if len(self._intervals) > MOST_INTERVALS:
            pairs = zip(self._intervals[::2], self._intervals[1::2], strict=False)
            self._intervals = [(a[0] + b[0], a[1] + b[1]) for a, b in pairs]
            self._length_s *= 2

    def end(self, workers: Iterable[Task]) -> None:
        """Stops measuring."""
        self.look(workers)
        self._since = None

    def discard(self) -> None:
        """Stops measuring, without the time since the last look: the workers' CPU time in it is unknown."""
        self._since = None

    def mean(self) -> float | None:
        """Mean number of free cores; None if unknown."""
        if not self._intervals:
            return None
        seconds, core_s = (sum(column) for column in zip(*self._intervals, strict=True))
        return float(core_s / seconds)

    def range(self) -> tuple[float, float] | None:
        """10th and 90th percentile of the free cores; None with fewer than two intervals."""
        if len(self._intervals) < 2:
            return None
        low, high = np.percentile([core_s / seconds for seconds, core_s in self._intervals], [10, 90])
        return float(low), float(high)

    @staticmethod
    def _now(workers: Iterable[Task]) -> tuple[float, float, dict[Task, float]]:
        others = [task for task in workers if task[0] != os.getpid()]
        cpu_s = {task: cpu for task in others if (cpu := _cpu_and_queued_s([task])[0]) > 0}
        return time.perf_counter(), _idle_s() + time.process_time(), cpu_s


def _idle_s() -> float:
    cores = psutil.cpu_times(percpu=True)
    usable = psutil.Process().cpu_affinity() if hasattr(psutil.Process, "cpu_affinity") else range(len(cores))
    return float(sum(cores[core].idle + getattr(cores[core], "iowait", 0.0) for core in usable if core < len(cores)))


def _cpu_and_queued_s(tasks: Iterable[Task]) -> tuple[float, float]:
    """CPU time and time in the run queue of these threads, summed; 0 for those that have ended.

    Source: /proc/PID/task/TID/schedstat, Linux's Documentation/scheduler/sched-stats.
    """
    cpu = queued = 0
    for process, thread in tasks:
        with contextlib.suppress(OSError, ValueError, IndexError):
            times = Path(f"/proc/{process}/task/{thread}/schedstat").read_text().split()
            cpu, queued = cpu + int(times[0]), queued + int(times[1])
    return cpu / 1e9, queued / 1e9


def queued_ns() -> int:
    """Time in which this thread was ready to run but had no core; 0 if unknown."""
    return round(1e9 * _cpu_and_queued_s([(os.getpid(), threading.get_native_id())])[1])


def _read_mb(tasks: Iterable[Task]) -> float:
    found = 0
    for process in {process for process, _ in tasks}:
        with contextlib.suppress(psutil.Error, AttributeError):  # not counted on every system
            found += psutil.Process(process).io_counters().read_bytes
    return found / 1e6
