"""Threads of this process that load batches ahead, in order; for reads and decoders that release the GIL."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from torch.utils.data import DataLoader

from feedrate.dataset.time_limit import CLOSE_S, LoadingThread, TimedOut, end_threads, hanging_at
from feedrate.loader.batch import Batch
from feedrate.loader.engines.engine import Engine, RequestSampler, pinned, pins
from feedrate.loader.engines.step_probe import StepProbe
from feedrate.loader.fetcher import BatchFetcher
from feedrate.loader.order import BatchRequest
from feedrate.timing.engine_traits import EngineTraits


class Threads(Engine):
    """Threads of the training process."""

    traits = EngineTraits(shares_interpreter=True, has_processes=False, prefetches=True)

    def __init__(self, fetcher: BatchFetcher, requests: RequestSampler) -> None:
        super().__init__(fetcher.in_threads(), requests)
        self._epochs = 0  # of the threads that are running

    def run(self, plan: Any, settings: DataLoader[Any]) -> Iterator[Batch]:
        if self._persistent is not None:
            self._persistent.crew.draw_due()
        return super().run(plan, settings)

    def start(self, settings: DataLoader[Any]) -> Iterator[Batch]:
        self.close()
        self._epochs = 1
        crew = _Crew(self._fetcher, pins(settings), iter(self._requests), settings.num_workers)
        ahead = settings.num_workers * (settings.prefetch_factor or 2)
        return _Batches(crew, settings.num_workers, ahead, settings.timeout)

    def resumed(self) -> None:
        self._epochs += 1
        if self._epochs == 2:  # the verdict leaves the first epoch out as soon as there is a second
            self._persistent.crew.probe.restart()

    def worker_ids(self) -> list[tuple[int, int]]:
        batches = self.running
        threads = batches.threads if batches is not None else ()
        return [(os.getpid(), t.native_id) for t in threads if t.native_id is not None and t.is_alive()]

    def idle(self) -> None:
        if (batches := self.running) is not None:
            batches.crew.probe.open()

    def close(self, now: bool = False) -> None:
        """Ends each thread after the sample or whole batch that it loads."""
        batches = self.running
        self._persistent = self._running = None
        if batches is not None:
            end_threads(batches.threads, 0 if now else CLOSE_S)


@dataclass
class _Task:
    """A request and its batch, which is there once `done` is released; `by` is the thread that has begun it."""

    request: BatchRequest | None
    by: int | None = None
    done: threading.Lock = field(default_factory=threading.Lock)
    batch: Batch | None = None
    failure: BaseException | None = None

    def __post_init__(self) -> None:
        self.done.acquire()


class _Crew:
    """The state that the threads of one start share. It does not refer to its user, so that it can end with it."""

    def __init__(self, fetcher: BatchFetcher, pins: str | None, requests: Iterator[BatchRequest], workers: int) -> None:
        self.fetcher, self.pins, self._requests, self.probe = fetcher, pins, requests, StepProbe(workers)
        self.permits: SimpleQueue[bool] = SimpleQueue()  # one for each batch that may be loaded; False ends a thread
        self.drawn: deque[_Task] = deque()  # in the order of requests, not delivered
        self._left: deque[_Task] = deque()  # drawn, but no thread has begun
        self._lock = threading.Lock()
        self.stopped = False

    def task(self) -> _Task | None:
        """The next one to load, None after the last request."""
        with self._lock:
            task = self._left.popleft() if self._left else self._draw()
            if task is not None:
                task.by = threading.get_ident()
            return task

    def draw_due(self) -> _Task | None:
        """The task whose batch is due next, drawn now if no thread has; None after the last request."""
        if not self.drawn:
            with self._lock:
                if not self.drawn and (task := self._draw()) is not None:
                    self._left.append(task)
        return self.drawn[0] if self.drawn else None

    def _draw(self) -> _Task | None:
        failure = None
        try:
            request = next(self._requests, None)
        except BaseException as error:  # from the dataset's __len__; the main thread waits for an answer
            request, failure = None, error
        if request is None and failure is None:
            return None
        task = _Task(request, failure=failure)
        self.drawn.append(task)
        return task

    def stop(self) -> None:
        self.stopped = True
        self.probe.stay_open()
        self.permits.put(False)  # each thread passes it on


class _Batches(Iterator[Batch]):
    """The batches in the order of their requests; delivering one permits another one to be loaded."""

    def __init__(self, crew: _Crew, workers: int, ahead: int, timeout: float) -> None:
        self.crew, self._timeout = crew, timeout
        self.threads = [_Thread(crew, number) for number in range(workers)]
        weakref.finalize(self, crew.stop).atexit = False
        for thread in self.threads:
            thread.start()
        for _ in range(ahead):
            crew.permits.put(True)

    def __next__(self) -> Batch:
        crew = self.crew
        task = crew.drawn[0] if crew.drawn else crew.draw_due()
        if task is None:
            raise StopIteration
        crew.probe.requested(task.by is not None)
        if not task.done.acquire(timeout=self._timeout or -1):
            raise TimedOut(self._timeout, at=hanging_at(task.by))
        crew.drawn.popleft()
        crew.permits.put(True)
        if task.failure is not None:
            raise task.failure
        return task.batch  # type: ignore[return-value]


class _Thread(LoadingThread):
    def __init__(self, crew: _Crew, number: int) -> None:
        super().__init__(f"{number}")
        self._crew, self._number = crew, number

    def run(self) -> None:
        crew = self._crew
        while crew.permits.get() and not crew.stopped:
            crew.probe.enter()
            task = None if crew.stopped else crew.task()
            if task is not None:
                self._load(task)
            crew.probe.leave()
            if task is not None:
                task.done.release()
            del task  # or this frame would keep its batch or error alive until the next one
        crew.permits.put(False)

    def _load(self, task: _Task) -> None:
        crew, request = self._crew, task.request
        if request is None:
            return
        try:
            task.batch = pinned(crew.fetcher.load(request, self._number, lambda: crew.stopped), crew.pins)
        except BaseException as failure:  # the main thread waits for an answer
            task.failure = failure

    def stop(self) -> None:
        self._crew.stop()
