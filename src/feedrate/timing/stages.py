"""Times the stages of loading a batch: fetch, decode, transform, collate, hand-over. Marked with `stage`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

STAGES = ("fetch", "decode", "transform", "collate", "handover")
MAIN_THREAD = -1  # in place of a worker's number
SAMPLED = 8  # CPU time is measured for one batch in so many
SLOWEST = 20  # samples reported by ID
clock_ns = time.perf_counter_ns  # the clock of all times here; processes share it


class Load(NamedTuple):
    """The loading of one batch, in nanoseconds of `clock_ns`. Kept as a plain tuple until it is read."""

    begin_ns: int
    end_ns: int
    cpu_ns: int  # CPU time of the thread in between
    number: int  # of the worker, MAIN_THREAD if loaded in the main thread
    decode_ns: int = 0  # the time of the stages; the rest is fetch
    transform_ns: int = 0
    collate_ns: int = 0
    handover_ns: int = 0

    @property
    def ns(self) -> int:
        return self.end_ns - self.begin_ns


def stage(name: str) -> _Stage:
    """Counts the time of a `with stage("decode"):` block in `__getitem__` or a transform as that stage of the load.

    Time outside any block is counted as `fetch`; of nested blocks the inner one counts. Does nothing outside of a
    loader. Costs half a microsecond.

    Raises:
        ValueError: the name is none of STAGES.
    """
    try:
        return _STAGES[name]
    except KeyError:
        raise ValueError(f"stage({name!r}): must be one of {', '.join(STAGES)}") from None


class Computed:
    """CPU time of a loader's latest measured batch: each of the first SAMPLED, then one in SAMPLED."""

    __slots__ = ("count", "ns")

    def __init__(self) -> None:
        self.count = self.ns = 0


class Watch:
    """Times the loading of batches in one thread, from `start` to `stop`.

    Both run with cold caches, so they make as few calls as possible.
    """

    __slots__ = ("_before", "_begin", "_computed", "_mark", "_now", "_outer", "_spent", "running", "samples_ns")

    def __init__(self) -> None:
        self.running = False
        self.samples_ns: Sequence[int] = ()
        self._computed: Computed
        self._before: int | None = None  # CPU time of the thread at the start, if it is measured
        self._begin = self._mark = self._now = 0
        self._spent: list[int] | None = None  # None until a stage is entered
        self._outer: list[int]

    @staticmethod
    def start(computed: Computed) -> Watch:
        """Starts this thread's watch. A batch loaded within the loading of another is timed without stages."""
        watch = _thread.watch
        if watch.running:
            watch = Watch()
        watch.running, watch.samples_ns, watch._spent = True, (), None
        watch._computed = computed
        count = computed.count = computed.count + 1
        watch._before = None if count > SAMPLED and count % SAMPLED else time.thread_time_ns()
        watch._begin = clock_ns()
        return watch

    def stop(self, number: int) -> tuple[int, ...]:
        """Ends a batch of worker `number`; the values of its Load, without stages if none was entered."""
        end, begin, computed = clock_ns(), self._begin, self._computed
        self.running = False
        if self._before is not None:
            computed.ns = time.thread_time_ns() - self._before
        cpu = min(computed.ns, end - begin)
        if self._spent is None:
            return begin, end, cpu, number
        self._spent[self._now] += end - self._mark
        return begin, end, cpu, number, *self._spent[1:]

    def end(self) -> None:
        """Ends a batch that failed."""
        self.running = False

    def enter(self, number: int) -> None:
        """Enters the stage with this number in STAGES; the time until then belongs to the outer stage."""
        now = clock_ns()
        if self._spent is None:
            self._spent, self._outer, self._now, self._mark = [0] * len(STAGES), [], 0, self._begin
        self._spent[self._now] += now - self._mark
        self._mark = now
        self._outer.append(self._now)
        self._now = number

    def leave(self) -> None:
        """Leaves the stage that was entered last, if any."""
        if not self._spent or not self._outer:
            return
        now = clock_ns()
        self._spent[self._now] += now - self._mark
        self._mark = now
        self._now = self._outer.pop()


def samples_took(ns: Sequence[int]) -> None:
    """Reports the loading time of each sample of the present batch, in its order, nanoseconds."""
    if _thread.watch.running:
        _thread.watch.samples_ns = ns


class Slowest:
    """The samples with the longest loading times, each with its longest. Thread-safe; pickled, it is empty again.

    Exact over several workers: a sample that is not among the slowest of its worker is not among those of all.
    """

    def __init__(self, size: int = SLOWEST) -> None:
        self._size = size
        self._times: dict[int, int] = {}
        self._least = 0  # times up to it are not among the longest
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Callable[..., Slowest], tuple[int]]:
        return Slowest, (self._size,)

    def add(self, indices: Sequence[int], times_ns: Sequence[int]) -> list[tuple[int, int]]:
        """Adds samples; returns (index, ns) of those that are among the slowest now."""
        if not times_ns or max(times_ns) <= self._least:
            return []
        with self._lock:
            for index, ns in zip(indices, times_ns, strict=True):
                self._times[index] = max(ns, self._times.get(index, 0))
            self._times = dict(self.longest()[: self._size])
            self._least = min(self._times.values()) if len(self._times) == self._size else 0
            return [pair for pair in zip(indices, times_ns, strict=True) if pair in self._times.items()]

    def longest(self) -> list[tuple[int, int]]:
        """(index, ns), the slowest first."""
        return sorted(self._times.items(), key=lambda pair: (-pair[1], pair[0]))


class _Stage:
    """Context manager of a stage; it has no state, so one object serves all threads."""

    __slots__ = ("_number",)

    def __init__(self, number: int) -> None:
        self._number = number

    def __enter__(self) -> None:
        watch = _thread.watch
        if watch.running:
            watch.enter(self._number)

    def __exit__(self, *error: Any) -> None:
        watch = _thread.watch
        if watch.running:
            watch.leave()


class _Thread(threading.local):
    def __init__(self) -> None:
        self.watch = Watch()


_thread = _Thread()
_STAGES = {name: _Stage(number) for number, name in enumerate(STAGES)}
