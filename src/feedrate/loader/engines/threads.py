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
from feedrate.loader.engines.engine import Engine, RequestSampler, pin_device, pinned
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

    def run(self, plan: Any, loader: DataLoader[Any]) -> Iterator[Batch]:
        if self._persistent is not None:
            self._persistent.crew.draw_due()
        return super().run(plan, loader)

    def start(self, loader: DataLoader[Any]) -> Iterator[Batch]:
        self.close()
        self._epochs = 1
        crew = _Crew(self._fetcher, pin_device(loader), iter(self._requests), loader.num_workers)
        ahead = loader.num_workers * (loader.prefetch_factor or 2)
        return _Batches(crew, loader.num_workers, ahead, loader.timeout)

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
class _Pending:
    """A request and its batch, which is loaded once `done` is released; `by` is the thread that loads it."""

    request: BatchRequest | None
    by: int | None = None
    done: threading.Lock = field(default_factory=threading.Lock)
    batch: Batch | None = None
    failure: BaseException | None = None

    def __post_init__(self) -> None:
        self.done.acquire()


class _Crew:
    """The state that threads share. It does not refer to their _Batches, so that these end with their last user."""

    def __init__(self, fetcher: BatchFetcher, device: str | None, requests: Iterator[BatchRequest], count: int) -> None:
        self.fetcher, self.pin_device, self._requests, self.probe = fetcher, device, requests, StepProbe(count)
        self.permits: SimpleQueue[bool] = SimpleQueue()  # one for each batch that may be loaded; False ends a thread
        self.drawn: deque[_Pending] = deque()  # in the order of requests, not delivered
        self._left: deque[_Pending] = deque()  # drawn, but no thread has begun
        self._lock = threading.Lock()
        self.stopped = False

    def take(self) -> _Pending | None:
        """The next batch to load, now begun by this thread; None after the last request."""
        with self._lock:
            pending = self._left.popleft() if self._left else self._draw()
            if pending is not None:
                pending.by = threading.get_ident()
            return pending

    def draw_due(self) -> _Pending | None:
        """The batch that is due next, drawn now if no thread has done so; None after the last request."""
        if not self.drawn:
            with self._lock:
                if not self.drawn and (pending := self._draw()) is not None:
                    self._left.append(pending)
        return self.drawn[0] if self.drawn else None

    def _draw(self) -> _Pending | None:
        failure = None
        try:
            request = next(self._requests, None)
        except BaseException as error:  # from the dataset's __len__; the main thread waits for an answer
            request, failure = None, error
        if request is None and failure is None:
            return None
        pending = _Pending(request, failure=failure)
        self.drawn.append(pending)
        return pending

    def stop(self) -> None:
        self.stopped = True
        self.probe.stay_open()
        self.permits.put(False)  # each thread passes it on


class _Batches(Iterator[Batch]):
    """The batches in the order of their requests; with each one that is delivered, another one may be loaded."""

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
        pending = crew.drawn[0] if crew.drawn else crew.draw_due()
        if pending is None:
            raise StopIteration
        crew.probe.requested(pending.by is not None)
        if not pending.done.acquire(timeout=self._timeout or -1):
            raise TimedOut(self._timeout, at=hanging_at(pending.by))
        crew.drawn.popleft()
        crew.permits.put(True)
        if pending.failure is not None:
            raise pending.failure
        return pending.batch  # type: ignore[return-value]


class _Thread(LoadingThread):
    def __init__(self, crew: _Crew, number: int) -> None:
        super().__init__(f"{number}")
        self._crew, self._number = crew, number

    def run(self) -> None:
        crew = self._crew
        while crew.permits.get() and not crew.stopped:
            crew.probe.enter()
            pending = None if crew.stopped else crew.take()
            if pending is not None:
                self._load(pending)
            crew.probe.leave()
            if pending is not None:
                pending.done.release()
            del pending  # or this frame would keep its batch or error alive until the next one
        crew.permits.put(False)

    def _load(self, pending: _Pending) -> None:
        crew, request = self._crew, pending.request
        if request is None:
            return
        try:
            pending.batch = pinned(crew.fetcher.load(request, self._number, lambda: crew.stopped), crew.pin_device)
        except BaseException as failure:  # the main thread waits for an answer
            pending.failure = failure

    def stop(self) -> None:
        self._crew.stop()
