"""What the machine did while a run trained: cores that were idle or free, threads that queued, what the disk gave.

As Linux counts it; elsewhere nothing is known of the queue, and it counts as none.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

INTERVAL_S = 0.5  # that is looked at as one; Linux counts idle time in steps of 10 ms for each core
MOST_INTERVALS = 256  # that are kept; beyond them two become one

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


class FreeCores:
    """How many cores a run could have had, interval by interval: those that it computed on, and those that were idle.

    The rest is what other processes took. Linux only; nothing is collected elsewhere.
    """

    def __init__(self) -> None:
        self._intervals: list[tuple[float, float]] = []  # seconds, and core seconds that were free
        self._length_s = INTERVAL_S
        self._open = (0.0, 0.0)
        self._since: tuple[float, float, dict[Task, float]] | None = None

    def begin(self, workers: Iterable[Task]) -> None:
        """A time that counts begins now, such as the training of an epoch."""
        self._since = self._now(workers) if sys.platform == "linux" else None

    @property
    def due(self) -> bool:
        """Whether the present interval is long enough to be looked at."""
        return self._since is not None and time.perf_counter() - self._since[0] >= self._length_s

    def look(self, workers: Iterable[Task]) -> None:
        """Counts the time until now, and goes on. Time in which a worker has ended is left out: it says no more what it
        computed.
        """
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
        """The time that counts ends now."""
        self.look(workers)
        self._since = None

    def mean(self) -> float | None:
        """Free cores on average; None where no interval is known."""
        if not self._intervals:
            return None
        seconds, core_s = (sum(column) for column in zip(*self._intervals, strict=True))
        return float(core_s / seconds)

    def discard(self) -> None:
        """The time since the last look does not count, as it is not known what the workers computed in it."""
        self._since = None

    def range(self) -> tuple[float, float] | None:
        """10th and 90th percentile of the free cores; None where fewer than two intervals are known."""
        if len(self._intervals) < 2:
            return None
        low, high = np.percentile([cores_s / seconds for seconds, cores_s in self._intervals], [10, 90])
        return float(low), float(high)

    @staticmethod
    def _now(workers: Iterable[Task]) -> tuple[float, float, dict[Task, float]]:
        own = {task: computed for task in workers if (computed := _ran_s([task])[0]) > 0 and task[0] != os.getpid()}
        return time.perf_counter(), _idle_s() + time.process_time(), own


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
