"""A time limit for calls that load samples (`loader.timeout`), and the end of threads that load samples."""

from __future__ import annotations

import atexit
import ctypes
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, TypeVar

from feedrate.errors import UserError, user_line

T = TypeVar("T")
PATIENCE_S = 5.0  # for a sample that is being loaded when Python ends; torch's limit for a worker
CLOSE_S = 0.5  # for a sample that is being loaded when the loader is closed


class LoadingThread(threading.Thread):
    """A daemon thread that loads samples, so that Python need not wait for one that hangs; it ends by itself."""

    def __init__(self, name: str, target: Callable[[], None] | None = None) -> None:
        super().__init__(name=f"feedrate-loader-{name}", target=target, daemon=True)
        RUNNING.add(self)

    def stop(self) -> None:
        """Requests the end of the thread."""


RUNNING: weakref.WeakSet[LoadingThread] = weakref.WeakSet()


class TimedOut(UserError):
    """Loading `what` took longer than loader.timeout; `at` is the sample and line of code, where known."""

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
    """The sample that a thread of this process is loading, and the line of the user's code."""
    frames = list(traceback.walk_stack(frame)) if (frame := sys._current_frames().get(thread or 0)) else []
    loading = [frame.f_locals for frame, _ in frames if frame.f_code.co_name == "_one_by_one"]
    IDs = [names["ID"] for names in loading if "ID" in names]
    place = user_line(frames)
    if not IDs and not place:
        return ""
    return f"{f'sample {IDs[-1]!r}' if IDs else 'it'} is still being loaded" + (f" ({place})" if place else "")


def within(seconds: float, call: Callable[[], T], what: str) -> T:
    """Calls a function that loads `what`, in a thread unless `seconds` is 0; raises TimedOut if it takes longer."""
    if not seconds:
        return call()
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except BaseException as error:  # raised in the main thread
            result.set_exception(error)

    thread = LoadingThread("once", run)
    thread.start()
    thread.join(min(seconds, threading.TIMEOUT_MAX))
    if not result.done():
        raise TimedOut(seconds, what, hanging_at(thread.ident))
    return result.result()


def end_threads(threads: Iterable[LoadingThread], seconds: float) -> None:
    """Stops threads, and waits at most `seconds` for them."""
    for thread in threads:
        thread.stop()
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


@atexit.register
def _end_left() -> None:
    """Ends threads before the interpreter shuts down, as one that returns from torch later aborts the process.

    A sample that takes longer is interrupted as soon as it is in Python code.
    """
    left = [thread for thread in list(RUNNING) if thread.is_alive()]
    end_threads(left, PATIENCE_S)
    for thread in left:
        if thread.is_alive() and thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
    end_threads(left, CLOSE_S)
