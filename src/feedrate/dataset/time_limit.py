"""A limit in seconds for a call that may hang, as `loader.timeout` sets it for loading samples.

Python cannot end such a call: it runs in a thread, which is left behind. Here is also what ends these threads, and
those of the loader, before Python ends.
"""

from __future__ import annotations

import atexit
import ctypes
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, NoReturn, Protocol, TypeVar

from feedrate.errors import UserError, user_line

T = TypeVar("T")
PATIENCE_S = 5.0  # for a sample that is being loaded when Python ends; as torch waits for a worker
CLOSE_S = 0.5  # for one that is being loaded when the loader is closed, which nobody wants any more


class Stoppable(Protocol):
    """A thread that loads samples."""

    @property
    def ident(self) -> int | None: ...

    def stop(self) -> None: ...

    def is_alive(self) -> bool: ...

    def join(self, timeout: float | None = None) -> None: ...


RUNNING: weakref.WeakSet[Stoppable] = weakref.WeakSet()


class TimedOut(UserError):
    """A sample or a batch did not come in time.

    Args:
        seconds: that it was waited for.
        what: was waited for.
        at: what is being loaded, and where in the code that hangs; empty where that cannot be seen.
    """

    def __init__(self, seconds: float, what: str = "a batch", at: str = "") -> None:
        self.seconds, self.what, self.at = seconds, what, at
        super().__init__(
            f"loader.timeout: {what} did not come within {seconds:g} seconds{f': {at}' if at else ''}\n"
            "A sample hangs, or loader.timeout is too short (0 waits for ever)"
            f"{'' if at else '; loader.num_workers=0 names the sample and the line that hangs'}"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return TimedOut, (self.seconds, self.what, self.at)


def hanging_at(thread: int | None) -> str:
    """What a thread of this process is loading, and at which line of the user's code."""
    frames = list(traceback.walk_stack(frame)) if (frame := sys._current_frames().get(thread or 0)) else []
    loading = [frame.f_locals for frame, _ in frames if frame.f_code.co_name == "_one_by_one"]
    IDs = [names["ID"] for names in loading if "ID" in names]
    place = user_line(frames)
    if not IDs and not place:
        return ""
    return f"{f'sample {IDs[-1]!r}' if IDs else 'it'} is still being loaded" + (f" ({place})" if place else "")


class _Once(threading.Thread):
    """Calls a function. Daemonic, as one that hangs is left where it is."""

    def __init__(self, call: Callable[[], None]) -> None:
        super().__init__(target=call, name="feedrate-loader-once", daemon=True)
        RUNNING.add(self)

    def stop(self) -> None:
        """It ends by itself."""


def within(seconds: float, call: Callable[[], T], what: str) -> T:
    """What a call returns that loads samples; for a time that is not 0 it is made in a thread.

    Args:
        what: it loads.

    Raises:
        TimedOut: it takes longer.
    """
    if not seconds:
        return call()
    made: SimpleQueue[Callable[[], T]] = SimpleQueue()

    def run() -> None:
        try:
            found = call()
        except BaseException as error:  # the main thread waits for an answer
            made.put(partial(_raised, error))
        else:
            made.put(lambda: found)

    thread = _Once(run)
    thread.start()
    try:
        answer = made.get(timeout=min(seconds, threading.TIMEOUT_MAX))
    except Empty:
        raise TimedOut(seconds, what, hanging_at(thread.ident)) from None
    thread.join()
    return answer()


def _raised(error: BaseException) -> NoReturn:
    raise error


def end_threads(threads: Iterable[Stoppable], seconds: float) -> None:
    """Tells them to end, and waits for so long at most."""
    for thread in threads:
        thread.stop()
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


@atexit.register
def _end_left() -> None:
    """Before the interpreter is taken apart under their feet: one that comes back from torch then aborts the process.

    A sample that takes longer is broken off, as soon as it is in Python.
    """
    left = [thread for thread in list(RUNNING) if thread.is_alive()]
    end_threads(left, PATIENCE_S)
    for thread in left:
        if thread.is_alive() and thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
    end_threads(left, CLOSE_S)
