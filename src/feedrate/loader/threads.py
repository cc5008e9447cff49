"""Threads of this process that load: in order, a bounded number of batches ahead, into memory that is used again.

For reads and decoders that release the interpreter's lock. What a thread does with a ticket is fetch.py; the same with
processes is workers.py.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader
from torch.utils.data._utils.pin_memory import pin_memory

from feedrate.errors import UserError
from feedrate.loader.fetch import Samples
from feedrate.loader.gate import Gate
from feedrate.loader.order import Plan
from feedrate.loader.tickets import Receipt, Ticket, Tickets

T = TypeVar("T")
PATIENCE_S = 5.0  # for a sample that is being loaded when Python ends; as torch waits for a worker
CLOSE_S = 0.5  # for one that is being loaded when the loader is closed, which nobody wants any more
_RUNNING: weakref.WeakSet[_Thread] = weakref.WeakSet()


class Threads:
    """Turns the tickets of a plan into the batches that `samples` makes of them; stands in for Workers."""

    def __init__(self, samples: Samples, tickets: Tickets) -> None:
        self._samples, self._tickets = samples.in_threads(), tickets
        self._kept: _Batches | None = None  # of threads that live on: the batches after those of a pass
        self._running: weakref.ref[_Batches] | None = None

    def begin(self, plan: Plan, settings: DataLoader[Any]) -> Iterator[Any]:
        """Batches with their receipts; the threads begin at once."""
        goes_on = self._tickets.begin(plan)
        if self._kept is not None and goes_on:
            return self._kept
        self.end()
        waiting = settings.num_workers * (settings.prefetch_factor or 2)
        pinned = settings.pin_memory and torch.accelerator.is_available()
        crew = _Crew(self._samples, pinned, settings.num_workers)
        batches = _Batches(iter(self._tickets), crew, settings.num_workers, waiting, settings.timeout)
        self._kept = batches if settings.persistent_workers else None
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

    def lost(self, error: BaseException) -> UserError | None:
        return None

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
            _end(batches.threads, seconds)


@dataclass
class _Task:
    """A ticket, and what came of it once `done` is released."""

    ticket: Ticket
    begun: bool = False
    done: threading.Lock = field(default_factory=threading.Lock)
    made: tuple[Any, Receipt] | None = None
    failure: BaseException | None = None

    def __post_init__(self) -> None:
        self.done.acquire()


class _Crew:
    """What the threads of one start share; it knows nothing of their user, so that they end when he is gone."""

    def __init__(self, samples: Samples, pinned: bool, threads: int) -> None:
        self.samples, self.pinned, self.gate = samples, pinned, Gate(threads)
        self.asked: SimpleQueue[_Task | None] = SimpleQueue()
        self.stopped = False

    def stop(self) -> None:
        self.stopped = True
        self.gate.stay_open()
        self.asked.put(None)  # each thread passes it on


class _Batches(Iterator[Any]):
    """The batches in the order of their tickets; each that is taken lets a further one be made."""

    def __init__(self, tickets: Iterator[Ticket], crew: _Crew, workers: int, waiting: int, timeout: float) -> None:
        self.crew, self._tickets, self._timeout = crew, tickets, timeout
        self._tasks: deque[_Task] = deque()
        self.threads = [_Thread(crew, number) for number in range(workers)]
        weakref.finalize(self, crew.stop).atexit = False
        for thread in self.threads:
            thread.start()
        for _ in range(waiting):
            self._ask()

    def _ask(self) -> None:
        ticket = next(self._tickets, None)
        if ticket is not None:
            task = _Task(ticket)
            self._tasks.append(task)
            self.crew.asked.put(task)

    def __next__(self) -> Any:
        if not self._tasks:
            raise StopIteration
        task = self._tasks[0]
        self.crew.gate.asked(task.begun)
        if not task.done.acquire(timeout=self._timeout or -1):
            raise UserError(
                f"loader.timeout: no batch came in time (none after {self._timeout:g} seconds)\n"
                "A sample hangs, or loader.timeout is too short (0 waits for ever)"
            )
        self._tasks.popleft()
        self._ask()
        if task.failure is not None:
            raise task.failure
        return task.made


class _Thread(threading.Thread):
    """One of the crew. Daemonic, since Python would wait without end for a sample that hangs."""

    def __init__(self, crew: _Crew, number: int) -> None:
        super().__init__(name=f"feedrate-loader-{number}", daemon=True)
        self._crew, self._number = crew, number
        _RUNNING.add(self)

    def run(self) -> None:
        crew = self._crew
        while (task := crew.asked.get()) is not None and not crew.stopped:
            self._do(task)
            del task  # or this frame would hold its batch, or its error and all that hangs on that, until the next one
        crew.asked.put(None)

    def _do(self, task: _Task) -> None:
        crew = self._crew
        crew.gate.enter()
        task.begun = True
        try:
            batch, receipt = crew.samples.make(task.ticket, self._number, lambda: crew.stopped)
            task.made = pin_memory(batch) if crew.pinned and receipt.error is None else batch, receipt
        except BaseException as failure:  # whatever it is, the main thread waits for an answer
            task.failure = failure
        crew.gate.leave()
        task.done.release()

    def stop(self) -> None:
        self._crew.stop()


def _end(threads: Sequence[_Thread], seconds: float) -> None:
    """Tells them to end, and waits for so long at most."""
    for thread in threads:
        thread.stop()
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


@atexit.register
def _end_left() -> None:
    """Before the interpreter is taken apart under their feet."""
    _end([thread for thread in list(_RUNNING) if thread.is_alive()], PATIENCE_S)
