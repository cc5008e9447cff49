"""Takes batches over from worker processes while the training computes, instead of when it asks for one.

A batch that has arrived in the main process's queue still costs it 0.3 ms and more to be read and unpickled. What the
batches are, and who makes them, is workers.py's affair.
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
PATIENCE_S = 5.0  # for a batch that is being waited for when nobody wants it any more; as torch waits for a worker

Found = tuple[Any, BaseException | None]
_RUNNING: weakref.WeakKeyDictionary[threading.Thread, SimpleQueue[bool]] = weakref.WeakKeyDictionary()


class Received(Iterator[Any]):
    """The batches of an iterator, one of them taken ahead in a thread of its own.

    The thread starts with the first batch that is asked for, as processes are forked until then.

    Args:
        batches: of the workers; the thread alone holds it from now on, and lets go of it at its end.
        timeout: seconds that a batch may take, 0 for ever.
        give_up: makes the workers end, whatever they do; called where the thread would wait for them too long.
    """

    def __init__(self, batches: Iterator[Any], timeout: float, give_up: Callable[[], None]) -> None:
        self._timeout = timeout
        self._wanted: SimpleQueue[bool] = SimpleQueue()
        self._found: SimpleQueue[Found] = SimpleQueue()
        self._thread = threading.Thread(target=_receive, args=([batches], self._wanted, self._found), name=NAME)
        self._thread.daemon = True  # Python would wait without end for a sample that hangs
        self._end = weakref.finalize(self, _end, self._thread, self._wanted, give_up)
        self._end.atexit = False

    def __next__(self) -> Any:
        if self._thread.ident is None:
            _RUNNING[self._thread] = self._wanted
            self._thread.start()
            self._wanted.put(True)
        try:
            made, error = self._found.get(timeout=self._timeout or None)
        except Empty:
            raise TimedOut(self._timeout) from None
        if error is not None:
            self._found.put((None, StopIteration()))  # the thread has ended
            raise error
        self._wanted.put(True)
        return made

    def end(self) -> bool:
        """Ends the thread, after the batch that it waits for; whether the workers could be left alive."""
        return self._end() is not False

    def abandon(self) -> None:
        """Tells the thread to end, and does not wait: for workers that are dead, which it finds out itself."""
        self._end.detach()
        self._wanted.put(False)


def end_all() -> None:
    """Ends the threads, whose workers are dead, before Python ends: one that is in torch then would abort it."""
    deadline = time.monotonic() + PATIENCE_S
    for thread, wanted in list(_RUNNING.items()):
        wanted.put(False)
        if thread.is_alive():
            thread.join(max(0.0, deadline - time.monotonic()))


def _receive(held: list[Iterator[Any]], wanted: SimpleQueue[bool], found: SimpleQueue[Found]) -> None:
    batches = held.pop()
    while wanted.get():
        try:
            made = next(batches)
        except StopIteration:
            found.put((None, StopIteration()))  # that one holds the workers
            return
        except BaseException as error:  # whatever it is, the main thread waits for an answer
            found.put((None, error))
            return
        found.put((made, None))
        del made


def _end(thread: threading.Thread, wanted: SimpleQueue[bool], give_up: Callable[[], None]) -> bool:
    wanted.put(False)
    if thread.ident is None or thread is threading.current_thread():
        return True
    thread.join(PATIENCE_S)
    if thread.is_alive():
        give_up()
        return False
    return True
