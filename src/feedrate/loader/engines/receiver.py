"""Receives batches from worker processes in a thread, as reading and unpickling one costs 0.3 ms and more."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Any

from feedrate.dataset.time_limit import LoadingThread, TimedOut

NAME = "feedrate-loader-receiver"
PATIENCE_S = 5.0  # for the batch in flight when the receiver ends; as long as torch waits for a worker


class Receiver(Iterator[Any]):
    """The batches of an iterator, one of them received ahead in a thread.

    The thread starts with the first request, since processes may be forked until then, and holds the only reference to
    the iterator. `give_up` kills the workers; it is called when the thread does not end in time.
    """

    def __init__(self, batches: Iterator[Any], timeout: float, give_up: Callable[[], None]) -> None:
        self._timeout = timeout
        self._thread = _Thread(batches)
        self._end = weakref.finalize(self, _end, self._thread, give_up)
        self._end.atexit = False

    def __next__(self) -> Any:
        thread = self._thread
        if thread.ident is None:
            thread.start()
            thread.requests.put(True)
        try:
            batch, error = thread.received.get(timeout=self._timeout or None)
        except Empty:
            raise TimedOut(self._timeout) from None
        if error is not None:
            thread.received.put((None, StopIteration()))  # the thread has ended
            raise error
        thread.requests.put(True)
        return batch

    def end(self) -> bool:
        """Ends the thread after the batch it waits for; returns False if the workers had to be killed for that."""
        return self._end() is not False

    def abandon(self) -> None:
        """Lets the thread end without waiting for it; for workers that are dead."""
        self._end.detach()
        self._thread.stop()


class _Thread(LoadingThread):
    def __init__(self, batches: Iterator[Any]) -> None:
        super().__init__("receiver")
        self._held = [batches]
        self.requests: SimpleQueue[bool] = SimpleQueue()
        self.received: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

    def run(self) -> None:
        batches = self._held.pop()
        while self.requests.get():
            try:
                batch = next(batches)
            except BaseException as error:  # the main thread waits for an answer
                # not the StopIteration itself, whose traceback holds the workers
                self.received.put((None, StopIteration() if isinstance(error, StopIteration) else error))
                return
            self.received.put((batch, None))
            del batch

    def stop(self) -> None:
        self.requests.put(False)


def _end(thread: _Thread, give_up: Callable[[], None]) -> bool:
    thread.stop()
    if thread.ident is None or thread is threading.current_thread():
        return True
    thread.join(PATIENCE_S)
    if thread.is_alive():
        give_up()
        return False
    return True
