"""The signals that ask a program to end, and Ctrl-C before anything has begun and after everything is done.

What stops in order is the training's and the sweep's own affair. Imports nothing that takes time.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

Handler = Callable[[int, "FrameType | None"], None]
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""From systems that manage jobs, from Ctrl-C, and from a terminal that is closed or a connection that is lost."""


class Stopped(KeyboardInterrupt):
    """The program was asked to stop, by signal `signum`."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_code = 128 + signum


def take(handler: Handler) -> dict[int, Any]:
    """Gives the signals of `STOPPING` to `handler`; returns the former handlers by signal, to be set again.

    One that is ignored stays so: `nohup` and a shell's background jobs mean it.
    """
    heard = [signum for signum in STOPPING if signal.getsignal(signum) is not signal.SIG_IGN]
    return {signum: signal.signal(signum, handler) for signum in heard}


def quit_on_interrupt() -> None:
    """Ctrl-C ends the process at once from now on, with one line and exit code 130; what `raise_when_stopped` has set
    is over.

    Where packages are imported an exception could be lost in their code; where Python ends nobody would catch it.
    """
    for signum in STOPPING:
        if signal.getsignal(signum) is _raise:
            signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _quit)


def on_the_way_out() -> None:
    """What a signal has stopped comes to its end: Ctrl-C ends it at once, and the others, which their senders repeat (a
    shell and the system when a terminal is closed), do not take away its exit code.
    """
    quit_on_interrupt()
    for signum in STOPPING:
        if signum != signal.SIGINT:
            signal.signal(signum, signal.SIG_IGN)


def raise_on_interrupt() -> None:
    """Ctrl-C raises KeyboardInterrupt again from now on."""
    if signal.getsignal(signal.SIGINT) is _quit:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def raise_when_stopped() -> None:
    """All signals that ask to stop raise Stopped from now on, wherever the program is, until `quit_on_interrupt`.

    For work of which nothing is kept: what it has started ends with it, instead of looking for it some seconds later.
    """
    raise_on_interrupt()
    take(_raise)


@contextmanager
def signals_blocked(*signums: int) -> Iterator[None]:
    """Signals arrive after the block; processes that are started in it, and what they start, hear them only after
    `ignore` or never.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signums)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore(signums: Iterable[int]) -> None:
    """They are without effect from now on, those too that came while they were `unheard`."""
    for signum in signums:
        signal.signal(signum, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signums)


def how_to_hurry(signum: int) -> str:
    """What ends the process sooner once signal `signum` has come."""
    return f"{'Ctrl-C again' if signum == signal.SIGINT else 'Ctrl-C'} stops at once"


def _raise(signum: int, frame: FrameType | None) -> NoReturn:
    on_the_way_out()
    raise Stopped(signum)


def _quit(*_: object) -> NoReturn:
    with contextlib.suppress(OSError):  # nobody reads
        os.write(2, b"interrupted\n")
    os._exit(130)
