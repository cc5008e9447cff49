"""Threads of this process that load: in order, a bounded number of batches ahead, into memory that is used again.

For reads and decoders that release the interpreter's lock. What a thread does with a request is fetch.py; the same with
processes is workers.py.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, TypeVar

from torch.utils.data import DataLoader

from feedrate.dataset.time_limit import CLOSE_S, RUNNING, TimedOut, end_threads, hanging_at
from feedrate.loader.batch import BatchInfo, BatchRequest, BatchRequests
from feedrate.loader.device import pinned, pins
from feedrate.loader.engines.step_probe import StepProbe
from feedrate.loader.fetcher import BatchFetcher
from feedrate.loader.order import Plan

T = TypeVar("T")


class Threads:
    """Turns the requests of a plan into the batches that `samples` makes of them; stands in for Workers."""

    def __init__(self, samples: BatchFetcher, requests: BatchRequests) -> None:
        self._samples, self._requests = samples.in_threads(), requests
        self._kept: _Batches | None = None  # of threads that live on: the batches after those of a pass
        self._running: weakref.ref[_Batches] | None = None
        self._passes = 0  # of the threads that live on

    def begin(self, plan: Plan, settings: DataLoader[Any]) -> Iterator[Any]:
        """Batches with their batch infos; the threads begin at once."""
        if self._kept is not None:
            self._kept.crew.draw_due()
        goes_on = self._requests.begin(plan)
        if self._kept is not None and goes_on:
            self._passes += 1
            if self._passes == 2:  # the first one's account is left out of the verdict as soon as there is another
                self._kept.crew.gate.begin_anew()
            return self._kept
        self.end()
        waiting = settings.num_workers * (settings.prefetch_factor or 2)
        crew = _Crew(self._samples, pins(settings), iter(self._requests), StepProbe(settings.num_workers))
        batches = _Batches(crew, range(settings.num_workers), waiting, settings.timeout)
        self._kept, self._passes = batches if settings.persistent_workers else None, 1
        self._running = weakref.ref(batches)
        return batches

    def watched(self, step: Callable[[], T]) -> T:
        """What `step` returns; there is no process that could be lost."""
        return step()

    def tasks(self) -> list[tuple[int, int]]:
        """This process and each thread that lives."""
        batches = self._running() if self._running is not None else None
        threads = batches.threads if batches is not None else ()
        return [(os.getpid(), t.native_id) for t in threads if t.native_id is not None and t.is_alive()]

    def rest(self) -> None:
        """A pass is over, and nobody asks for a batch until the next one: they are to make what that begins with."""
        batches = self._running() if self._running is not None else None
        if batches is not None:
            batches.crew.gate.rest()

    def end(self) -> None:
        """Ends the threads, each after the sample or whole batch that it is loading; hardly waits for that."""
        self._stop(CLOSE_S)

    def kill(self) -> None:
        """Tells them to end, and does not wait; what they still load is thrown away."""
        self._stop(0)

    def _stop(self, seconds: float) -> None:
        batches = self._running() if self._running is not None else None
        self._kept = self._running = None
        if batches is not None:
            end_threads(batches.threads, seconds)


@dataclass
class _Task:
    """A request, and what came of it once `done` is released; `begun` by thread `by` before that."""

    request: BatchRequest | None
    begun: bool = False
    by: int | None = None
    done: threading.Lock = field(default_factory=threading.Lock)
    made: tuple[Any, BatchInfo] | None = None
    failure: BaseException | None = None

    def __post_init__(self) -> None:
        self.done.acquire()


class _Crew:
    """What the threads of one start share; it knows nothing of their user, so that they end when he is gone.

    A thread draws its request itself: where a batch is taken, the training waits for whatever is done there.

    Attributes:
        wanted: an item for each batch that may be made; False ends the threads.
        drawn: tasks in the order of their requests, whose batches have not been taken.
    """

    def __init__(
        self, samples: BatchFetcher, pins: str | None, requests: Iterator[BatchRequest], gate: StepProbe
    ) -> None:
        self.samples, self.pins, self._requests, self.gate = samples, pins, requests, gate
        self.wanted: SimpleQueue[bool] = SimpleQueue()
        self.drawn: deque[_Task] = deque()
        self._left: deque[_Task] = deque()  # drawn by another than who is to do it
        self._lock = threading.Lock()
        self.stopped = False

    def task(self) -> _Task | None:
        """The next one to be done, None after the last request."""
        with self._lock:
            task = self._left.popleft() if self._left else self._draw()
            if task is not None:
                task.begun, task.by = True, threading.get_ident()
            return task

    def draw_due(self) -> _Task | None:
        """The task whose batch is due next, drawn now where no thread has come to that; None after the last one."""
        if not self.drawn:
            with self._lock:
                if not self.drawn and (task := self._draw()) is not None:
                    self._left.append(task)
        return self.drawn[0] if self.drawn else None

    def _draw(self) -> _Task | None:
        failure = None
        try:
            request = next(self._requests, None)
        except BaseException as error:  # the dataset is asked for its length; the main thread waits for an answer
            request, failure = None, error
        if request is None and failure is None:
            return None
        task = _Task(request, failure=failure)
        self.drawn.append(task)
        return task

    def stop(self) -> None:
        self.stopped = True
        self.gate.stay_open()
        self.wanted.put(False)  # each thread passes it on


class _Batches(Iterator[Any]):
    """The batches in the order of their requests; each that is taken lets a further one be made.

    Args:
        numbers: of the threads; None stands for the main thread, in whose place one makes batches.
        waiting: batches that are made ahead; with 0 each is made when it is asked for.
        timeout: seconds that a batch may take, 0 for ever.
    """

    def __init__(self, crew: _Crew, numbers: Sequence[int | None], waiting: int, timeout: float) -> None:
        self.crew, self._timeout, self._ahead = crew, timeout, waiting > 0
        self.threads = [_Thread(crew, number) for number in numbers]
        weakref.finalize(self, crew.stop).atexit = False
        for thread in self.threads:
            thread.start()
        for _ in range(waiting):
            crew.wanted.put(True)

    def __next__(self) -> Any:
        crew = self.crew
        task = crew.drawn[0] if crew.drawn else crew.draw_due()
        if task is None:
            raise StopIteration
        crew.gate.asked(task.begun)
        if not self._ahead:
            crew.wanted.put(True)
        if not task.done.acquire(timeout=self._timeout or -1):
            raise TimedOut(self._timeout, at=hanging_at(task.by))
        crew.drawn.popleft()
        if self._ahead:
            crew.wanted.put(True)
        if task.failure is not None:
            raise task.failure
        return task.made


class _Thread(threading.Thread):
    """One of the crew. Daemonic, since Python would wait without end for a sample that hangs."""

    def __init__(self, crew: _Crew, number: int | None) -> None:
        super().__init__(name=f"feedrate-loader-{number}", daemon=True)
        self._crew, self._number = crew, number
        RUNNING.add(self)

    def run(self) -> None:
        crew = self._crew
        while crew.wanted.get() and not crew.stopped:
            crew.gate.enter()
            task = None if crew.stopped else crew.task()
            if task is not None:
                self._make(task)
            crew.gate.leave()
            if task is not None:
                task.done.release()
            del task  # or this frame would hold its batch, or its error and all that hangs on that, until the next one
        crew.wanted.put(False)

    def _make(self, task: _Task) -> None:
        crew, request = self._crew, task.request
        if request is None:
            return
        try:
            batch, info = crew.samples.make(request, self._number, lambda: crew.stopped)
            if crew.pins is not None and info.error is None:
                batch = pinned(batch, crew.pins)
            task.made = batch, info
        except BaseException as failure:  # whatever it is, the main thread waits for an answer
            task.failure = failure

    def stop(self) -> None:
        self._crew.stop()


def one_at_a_time(
    samples: BatchFetcher, requests: Iterator[BatchRequest], pins: str | None, timeout: float
) -> Iterator[Any]:
    """Batches in place of the main thread's, each made when it is asked for, so that it may take so many seconds."""
    return _Batches(_Crew(samples, pins, requests, StepProbe(1)), [None], 0, timeout)
