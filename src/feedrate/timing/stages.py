"""What making a batch was spent on, as the worker that made it tells: fetch, decode, transform, collate, hand-over.

A dataset marks its parts with `stage`; when and where batches are made is the loader's affair.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

STAGES = ("fetch", "decode", "transform", "collate", "handover")
MAIN_THREAD = -1  # stands for no worker
SAMPLED = 8  # of so many batches one is asked what it computed
SLOWEST = 20  # samples that are told by name
clock_ns = time.perf_counter_ns  # the one clock of all accounts


class Load(NamedTuple):
    """The making of one batch; nanoseconds on the clock of time.perf_counter_ns, which all processes share.

    Until somebody asks it is a plain tuple of these values, which costs least: see `Watch.stop`.

    Attributes:
        begin_ns, end_ns: when.
        cpu_ns: what of it the thread that made it was computing.
        number: of the worker, MAIN_THREAD for the main thread of the main process.
        decode_ns, transform_ns, collate_ns, handover_ns: the time of these stages; all else is fetch.
    """

    begin_ns: int
    end_ns: int
    cpu_ns: int
    number: int
    decode_ns: int = 0
    transform_ns: int = 0
    collate_ns: int = 0
    handover_ns: int = 0

    @property
    def ns(self) -> int:
        return self.end_ns - self.begin_ns

    @property
    def worker(self) -> int | None:
        """Number of the worker, None for the main thread of the main process."""
        return None if self.number == MAIN_THREAD else self.number

    @property
    def stages_ns(self) -> tuple[int, ...]:
        """The time by stage, in the order of STAGES; adds up to end - begin."""
        others = self[-len(STAGES) + 1 :]
        return (self.ns - sum(others), *others)


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


class Computed:
    """What a loader's batches compute: asked for the first SAMPLED of them and then for one in so many.

    That goes through the kernel; the others count as computing as much. Its threads share it: what one of them has just
    been asked for stands for them all.
    """

    __slots__ = ("count", "ns")

    def __init__(self) -> None:
        self.count = self.ns = 0


class Watch:
    """Times the making of a batch in one thread, from `start` to `stop`; that of the next one, too.

    Both run where nothing of them is in the processor's caches, so that each call and each name that they do without
    counts.
    """

    __slots__ = ("_around", "_before", "_begin", "_computed", "_mark", "_now", "_outer", "_spent", "running",
                 "samples_ns")  # fmt: skip

    def __init__(self, around: Watch | None = None) -> None:
        self.running = False
        self.samples_ns: Sequence[int] = ()
        self._around = around  # of the batch in whose making this one is made
        self._computed: Computed
        self._before: int | None = None  # what the thread had computed before this batch, where that is asked for it
        self._begin = self._mark = self._now = 0
        self._spent: list[int] | None = None  # until a part is marked, all is the first
        self._outer: list[int]

    @staticmethod
    def start(computed: Computed) -> Watch:
        """This thread's, as a batch of the loader of `computed` is about to be made; a new one within another batch."""
        watch = _thread.watch
        if watch.running:
            watch = _thread.watch = Watch(watch)
        watch.running, watch.samples_ns, watch._spent = True, (), None
        watch._computed = computed
        count = computed.count = computed.count + 1
        watch._before = None if count > SAMPLED and count % SAMPLED else time.thread_time_ns()
        watch._begin = clock_ns()
        return watch

    def stop(self, number: int) -> tuple[int, ...]:
        """It is made: the values of a Load of the worker of that number, those at its end left out where they are 0."""
        end, begin, computed = clock_ns(), self._begin, self._computed
        self.running = False
        if self._around is not None:
            _thread.watch = self._around
        if self._before is not None:
            computed.ns = time.thread_time_ns() - self._before
        cpu = computed.ns
        cpu = min(cpu, end - begin)
        if self._spent is None:
            return begin, end, cpu, number
        self._spent[self._now] += end - self._mark
        return begin, end, cpu, number, *self._spent[1:]

    def end(self) -> None:
        """It was broken off."""
        self.running = False
        if self._around is not None:
            _thread.watch = self._around

    def enter(self, number: int) -> None:
        now = clock_ns()
        if self._spent is None:
            self._spent, self._outer, self._now, self._mark = [0] * len(STAGES), [], 0, self._begin
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
    if _thread.watch.running:
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
