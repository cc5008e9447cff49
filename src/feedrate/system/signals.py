"""Signals that ask a program to stop: SIGTERM, Ctrl-C and SIGHUP. Imports nothing that takes time.

`Interruption` lets a run finish its step and write a checkpoint before it exits with 128 + signal. The functions are
for the time before and after a run, and for commands without checkpoints.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Sent by job managers, by Ctrl-C, and when a terminal closes or a connection is lost."""
PATIENCE_S = 8.0  # from the first signal to the end of a process that hangs; containers wait for ten seconds
AT_ONCE_S = 1.0  # the same after a second Ctrl-C


class Interrupted(KeyboardInterrupt):
    """Signal `signum` stopped the program."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_code = 128 + signum


class Interruption:
    """Remembers the first signal that asks to stop (`signum`), and raises Interrupted where that is safe.

    With `safe` the handler raises wherever the process is, as while the loop waits for a batch; otherwise `check`
    raises after the step. A second Ctrl-C raises KeyboardInterrupt at once. A process that hangs is ended after
    `patience_s`, unless that is None; `abandon` is called before, in a thread, with the reason.
    """

    def __init__(
        self,
        abandon: Callable[[str], None] = lambda text: None,
        action: str = "stopping in order",
        patience_s: float | None = PATIENCE_S,
    ) -> None:
        self.signum: int | None = None
        self.safe = False
        self._abandon, self._action, self._patience_s = abandon, action, patience_s
        self._process = os.getpid()
        self._former: dict[int, Any] = {}
        self._hurried = self._saving = False
        self._over = threading.Event()

    def listen(self) -> None:
        """Handles the signals in `STOPPING` until `leave`; only the main thread can."""
        if threading.current_thread() is threading.main_thread():
            self._former = _handle(self._received)

    def leave(self) -> None:
        """Restores the former handlers."""
        self._over.set()
        while self._former:
            signal.signal(*self._former.popitem())

    def check(self) -> None:
        """Raises Interrupted if a signal was received."""
        if self.signum is not None:
            raise Interrupted(self.signum)

    def allow(self) -> None:
        """Sets `safe`; raises Interrupted if a signal was received."""
        self.safe = self.signum is None
        self.check()

    @contextmanager
    def saving(self) -> Iterator[None]:
        """While a checkpoint is written, `patience_s` does not apply."""
        self._saving = True
        try:
            yield
        finally:
            self._saving = False

    def _received(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker just forked, before it ignores signals
            return
        if self.signum is None:
            self.signum = signum
            with contextlib.suppress(OSError):  # the reader may be gone
                os.write(2, f"\n{signal.Signals(signum).name}: {self._action}; another Ctrl-C stops at once\n".encode())
            if self._patience_s is not None:  # only now: with a second thread a process cannot fork workers safely
                end = time.monotonic() + self._patience_s
                threading.Thread(target=self._end_in_time, args=(end,), daemon=True).start()
        elif signum == signal.SIGINT and not self._hurried:
            self._hurried, self.safe = True, False
            raise KeyboardInterrupt("stopped at once")
        if self.safe:
            self.safe = False
            raise Interrupted(self.signum)

    def _end_in_time(self, end: float) -> None:
        """Ends the process if it still runs at the instant `end`, sooner when hurried."""
        while time.monotonic() < end or (self._saving and not self._hurried):
            if self._over.wait(0.1):
                return
            if self._hurried:
                end = min(end, time.monotonic() + AT_ONCE_S)
        assert self.signum is not None
        how = "stopped at once" if self._hurried else f"stopped by {signal.Signals(self.signum).name} while it hung"
        text = f"{how}; the last checkpoint is what is kept"
        with contextlib.suppress(Exception):
            self._abandon(text)
        with contextlib.suppress(Exception):
            if "multiprocessing" in sys.modules:  # otherwise there are no children, and an import could hang as well
                for child in sys.modules["multiprocessing"].active_children():
                    child.kill()
        with contextlib.suppress(Exception):
            os.write(2, f"{text}\n".encode())
        os._exit(128 + (signal.SIGINT if self._hurried else self.signum))


def quit_on_interrupt() -> None:
    """Ctrl-C exits at once with one line and code 130; ends `raise_when_stopped`.

    For imports, where an exception could get lost, and for the end of the program, where nothing would catch it.
    """
    for signum in STOPPING:
        if signal.getsignal(signum) in (_raise, signal.default_int_handler):
            signal.signal(signum, _quit if signum == signal.SIGINT else signal.SIG_DFL)


def raise_when_stopped() -> None:
    """Each signal in `STOPPING` raises Interrupted at once, until `quit_on_interrupt`: for commands without a run."""
    _handle(_raise)


def on_the_way_out() -> None:
    """For the end of a stopped program: Ctrl-C exits at once; other signals, often sent again, are ignored."""
    quit_on_interrupt()
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)


@contextmanager
def signals_blocked(*signums: int) -> Iterator[None]:
    """Signals arrive after the block; processes started in it inherit the block, until they call `ignore`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signums)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore(signums: Iterable[int]) -> None:
    """Ignores these signals from now on, pending ones included."""
    for signum in signums:
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signums)


def _handle(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Sets the handler of the signals in `STOPPING` that are not ignored (nohup, background jobs); the former ones."""
    handled = [signum for signum in STOPPING if signal.getsignal(signum) is not signal.SIG_IGN]
    return {signum: signal.signal(signum, handler) for signum in handled}


def _raise(signum: int, frame: FrameType | None) -> NoReturn:
    on_the_way_out()
    raise Interrupted(signum)


def _quit(*_: object) -> NoReturn:
    with contextlib.suppress(OSError):  # nothing reads it
        os.write(2, b"interrupted\n")
    os._exit(130)
