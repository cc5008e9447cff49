"""What making a batch was spent on, as the worker that made it tells: fetch, decode, transform, collate, hand-over.

A dataset marks its parts with `stage`; when and where batches are made is the loader's affair.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

STAGES = ("fetch", "decode", "transform", "collate", "handover")
_NOTHING = (0,) * (len(STAGES) - 1)
SLOWEST = 20  # samples that are told by name
clock_ns = time.perf_counter_ns  # the one clock of all accounts


class Load(NamedTuple):
    """The making of one batch; nanoseconds on the clock of time.perf_counter_ns, which all processes share.

    Attributes:
        begin_ns, end_ns: when.
        cpu_ns: what of it the thread that made it was computing.
        stages_ns: the time by stage, in the order of STAGES; adds up to end - begin.
        worker: number of the worker, None for the main thread of the main process.
        slow: (index in the dataset, ns) of samples among the longest that this worker has seen; none where samples
            are not timed one by one.
    """

    begin_ns: int
    end_ns: int
    cpu_ns: int
    stages_ns: tuple[int, ...]
    worker: int | None
    slow: tuple[tuple[int, int], ...] = ()

    @property
    def ns(self) -> int:
        return self.end_ns - self.begin_ns


def stage(name: str) -> _Stage:
    """`with stage("decode"):` inside `__getitem__` or a transform: what it takes counts as that part of the load.

    Args:
        name: decode, transform, collate, or fetch, which all that is not marked belongs to.

    Costs half a microsecond; outside of a loader it does nothing. Of parts within one another the inner one counts.

    Raises:
        ValueError: no such stage.
    """
    try:
        return _STAGES[name]
    except KeyError:
        raise ValueError(f"stage({name!r}): must be one of {', '.join(STAGES)}") from None


class Watch:
    """Times the making of one batch, from its creation to `stop`; it is that of the present thread meanwhile."""

    __slots__ = ("_begin", "_cpu", "_mark", "_now", "_outer", "_spent", "samples_ns")

    def __init__(self) -> None:
        self.samples_ns: Sequence[int] = ()
        self._spent: list[int] | None = None  # until a part is marked, all is the first
        self._outer: list[int]
        self._now = 0
        _thread.watch = self
        self._cpu = time.thread_time_ns()
        self._begin = self._mark = clock_ns()

    def stop(self, worker: int | None, slow: Iterable[tuple[int, int]] = ()) -> Load:
        """The account."""
        end = clock_ns()
        _thread.watch = None
        cpu = time.thread_time_ns() - self._cpu
        spent = self._spent
        if spent is None:
            return Load(self._begin, end, cpu, (end - self._begin, *_NOTHING), worker, tuple(slow))
        spent[self._now] += end - self._mark
        return Load(self._begin, end, cpu, tuple(spent), worker, tuple(slow))

    def enter(self, number: int) -> None:
        now = clock_ns()
        if self._spent is None:
            self._spent, self._outer = [0] * len(STAGES), []
        self._spent[self._now] += now - self._mark
        self._mark = now
        self._outer.append(self._now)
        self._now = number

    def leave(self) -> None:
        """Of the part that was entered last; does nothing outside of any."""
        if not self._spent or not self._outer:
            return
        now = clock_ns()
        self._spent[self._now] += now - self._mark
        self._mark = now
        self._now = self._outer.pop()


def samples_took(ns: Sequence[int]) -> None:
    """Tells what each sample of the batch that is being made took, in its order, nanoseconds."""
    if _thread.watch is not None:
        _thread.watch.samples_ns = ns


class Slowest:
    """The samples that took longest, each by its longest time; exact over any number of workers.

    A sample that is not among the longest of the worker that loaded it is not among those of all. Safe to use from
    several threads; a copy in another process begins anew.
    """

    def __init__(self, size: int = SLOWEST) -> None:
        self._size = size
        self._times: dict[int, int] = {}
        self._least = 0  # what a sample must take at least to come in
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Callable[..., Slowest], tuple[int]]:
        return Slowest, (self._size,)

    def add(self, indices: Sequence[int], times_ns: Sequence[int]) -> list[tuple[int, int]]:
        """Takes in samples; gives those that are among the longest now."""
        if not times_ns or max(times_ns) <= self._least:
            return []
        return [pair for pair in zip(indices, times_ns, strict=True) if pair[1] > self._least and self._put(*pair)]

    def _put(self, index: int, ns: int) -> bool:
        with self._lock:
            if ns <= self._times.get(index, 0):
                return False
            self._times[index] = ns
            if len(self._times) > self._size:
                del self._times[min(self._times, key=self._times.__getitem__)]
            if len(self._times) == self._size:
                self._least = min(self._times.values())
            return index in self._times

    def longest(self) -> list[tuple[int, int]]:
        """(index, ns), the longest first."""
        return sorted(self._times.items(), key=lambda pair: (-pair[1], pair[0]))


class _Stage:
    """Holds nothing but its number, so that one object serves every thread, also within itself."""

    __slots__ = ("_number",)

    def __init__(self, number: int) -> None:
        self._number = number

    def __enter__(self) -> None:
        watch = _thread.watch
        if watch is not None:
            watch.enter(self._number)

    def __exit__(self, *error: Any) -> None:
        watch = _thread.watch
        if watch is not None:
            watch.leave()


class _Thread(threading.local):
    watch: Watch | None = None


_thread = _Thread()
_STAGES = {name: _Stage(number) for number, name in enumerate(STAGES)}
