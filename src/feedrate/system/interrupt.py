"""SIGTERM, Ctrl-C, a closed terminal: the step is finished, a checkpoint written, the run marked; or all at once.

When it is safe to stop is the loop's to say. A process that hangs, so that it cannot do any of that, is ended.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from feedrate.system.signals import Stopped, how_to_hurry, take

PATIENCE_S = 8.0  # from a signal to the end of a process that hangs; containers wait for ten seconds
AT_ONCE_S = 1.0  # the same after Ctrl-C has come as a second signal


class Interrupted(Stopped):
    """The run was asked to stop, by signal `signum`."""


class Interruption:
    """Remembers that a signal came, and stops the run where it may be stopped.

    Args:
        abandon: marks the run as killed, with a reason, without waiting for anything; called from a thread when the
            process hangs and is ended. Its lock is left: the next command tells the tracker.

    Attributes:
        safe: whether the handler may raise at once, wherever the process is: while the loop waits for a batch, which
            can take long, or evaluates. Otherwise `check` raises after the step.
    """

    def __init__(self, abandon: Callable[[str], None] = lambda text: None) -> None:
        self.safe = False
        self._signum: int | None = None
        self._hurried = False
        self._process = os.getpid()
        self._former: dict[int, Any] = {}
        self._abandon = abandon
        self._saving, self._over = False, threading.Event()

    def listen(self) -> None:
        """Takes the signals that ask to stop from now on, until `leave`."""
        if threading.current_thread() is threading.main_thread():  # only it may set handlers
            self._former = take(self._take)

    def leave(self) -> None:
        """Puts the former handlers back."""
        self._over.set()
        if self._signum is not None and self._former:
            signal.set_wakeup_fd(-1)
        while self._former:
            signal.signal(*self._former.popitem())

    def check(self) -> None:
        """Raises Interrupted if a signal has come."""
        if self._signum is not None:
            raise Interrupted(self._signum)

    def allow(self) -> None:
        """It is safe from now on; raises Interrupted if a signal has come."""
        self.safe = True
        if self._signum is not None:
            self.safe = False
            raise Interrupted(self._signum)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within it a signal waits, as while workers are started: one that is half started could not be ended."""
        safe, self.safe = self.safe, False
        yield
        if safe:
            self.allow()

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Within it a checkpoint is written, which takes what it takes; only a further Ctrl-C breaks it off."""
        self._saving = True
        try:
            yield
        finally:
            self._saving = False

    def _take(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker that has just been forked, and will ignore signals in a moment
            return
        if self._signum is not None and signum == signal.SIGINT:
            if self._hurried:  # on its way out already; `_end_in_time` sees to it that it comes there
                return
            self._hurried = True
            raise KeyboardInterrupt("stopped at once")
        if self._signum is None:
            self._signum = signum
            with contextlib.suppress(OSError):  # who read it may be gone, as a sweep that was killed
                os.write(2, f"\n{signal.Signals(signum).name}: stopping in order; {how_to_hurry(signum)}\n".encode())
            self._watch()
        if self.safe:
            self.safe = False
            raise Interrupted(self._signum)

    # -----------------------------------------------------------------------------------------------------
    # a process that hangs
    # -----------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Begins only now, since with another thread at its side a process cannot fork workers in safety."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)  # told of each signal, also where Python hangs
        threading.Thread(target=self._end_in_time, args=(read,), name="feedrate-interruption", daemon=True).start()

    def _end_in_time(self, wakeup: int) -> None:
        patience, hurry = time.monotonic() + PATIENCE_S, float("inf")
        while not self._over.is_set():
            now = time.monotonic()
            if now > hurry:
                self._end("stopped at once", 128 + signal.SIGINT)
            if now > patience and not self._saving:
                assert self._signum is not None
                self._end(f"stopped by {signal.Signals(self._signum).name} while it hung", 128 + self._signum)
            if select.select([wakeup], [], [], 0.1)[0] and signal.SIGINT in os.read(wakeup, 64):
                hurry = min(hurry, now + AT_ONCE_S)

    def _end(self, how: str, code: int) -> NoReturn:
        text = f"{how}; the last checkpoint is what is kept"
        with contextlib.suppress(Exception):
            self._abandon(text)
        with contextlib.suppress(Exception):
            for child in multiprocessing.active_children():
                child.kill()
        with contextlib.suppress(Exception):
            os.write(2, f"{text}\n".encode())
        os._exit(code)
