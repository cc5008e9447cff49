"""Receives batches from worker processes in a thread, while the training computes.

Reading and unpickling a batch that has arrived costs the main process 0.3 ms and more.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Any

from feedrate.dataset.time_limit import TimedOut

NAME = "feedrate-receiver"
PATIENCE_S = 5.0  # for the batch in flight when the receiver ends; as torch waits for a worker

Received = tuple[Any, BaseException | None]
_RUNNING: weakref.WeakKeyDictionary[threading.Thread, SimpleQueue[bool]] = weakref.WeakKeyDictionary()


class Receiver(Iterator[Any]):
    """The batches of an iterator, one of them received ahead in a thread.

    The thread starts with the first request, since processes may be forked until then.

    Args:
        batches: of the workers; the thread holds the only reference and drops it at its end.
        timeout: seconds to wait for a batch, 0 without limit.
        give_up: kills the workers; called when the thread does not end in time.
    """

    def __init__(self, batches: Iterator[Any], timeout: float, give_up: Callable[[], None]) -> None:
        self._timeout = timeout
        self._requests: SimpleQueue[bool] = SimpleQueue()
        self._received: SimpleQueue[Received] = SimpleQueue()
        self._thread = threading.Thread(target=_receive, args=([batches], self._requests, self._received), name=NAME)
        self._thread.daemon = True  # Python would wait without end for a sample that hangs
        self._end = weakref.finalize(self, _end, self._thread, self._requests, give_up)
        self._end.atexit = False

    def __next__(self) -> Any:
        if self._thread.ident is None:
            _RUNNING[self._thread] = self._requests
            self._thread.start()
            self._requests.put(True)
        try:
            batch, error = self._received.get(timeout=self._timeout or None)
        except Empty:
            raise TimedOut(self._timeout) from None
        if error is not None:
            self._received.put((None, StopIteration()))  # the thread has ended
            raise error
        self._requests.put(True)
        return batch

    def end(self) -> bool:
        """Ends the thread after the batch it waits for; returns False if the workers had to be killed for that."""
        return self._end() is not False

    def abandon(self) -> None:
        """Lets the thread end without waiting for it; for workers that are dead."""
        self._end.detach()
        self._requests.put(False)


def end_all() -> None:
    """Ends the threads of dead workers before Python exits; a thread inside torch would abort the process."""
    deadline = time.monotonic() + PATIENCE_S
    for thread, requests in list(_RUNNING.items()):
        requests.put(False)
        if thread.is_alive():
            thread.join(max(0.0, deadline - time.monotonic()))


def _receive(held: list[Iterator[Any]], requests: SimpleQueue[bool], received: SimpleQueue[Received]) -> None:
    batches = held.pop()
    while requests.get():
        try:
            batch = next(batches)
        except BaseException as error:  # the main thread waits for an answer
            # not the StopIteration itself, whose traceback holds the workers
            received.put((None, StopIteration() if isinstance(error, StopIteration) else error))
            return
        received.put((batch, None))
        del batch


def _end(thread: threading.Thread, requests: SimpleQueue[bool], give_up: Callable[[], None]) -> bool:
    requests.put(False)
    if thread.ident is None or thread is threading.current_thread():
        return True
    thread.join(PATIENCE_S)
    if thread.is_alive():
        give_up()
        return False
    return True
