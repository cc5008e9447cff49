"""SIGTERM and Ctrl-C: the step is finished, a checkpoint written, the run marked; a second Ctrl-C stops at once.

When it is safe to stop is the loop's to say.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, by signal `signum`."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_code = 128 + signum


class Interruption:
    """Remembers that a signal came, and stops the loop where it may be stopped.

    Attributes:
        safe: whether the state is that of a finished step, so that the handler may raise at once: while the loop waits
            for a batch, which can take long, or evaluates. Otherwise `check` raises after the step.
    """

    def __init__(self) -> None:
        self.safe = False
        self._signum: int | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within it, signals are taken; the former handlers are put back afterwards."""
        if threading.current_thread() is not threading.main_thread():  # only it may set handlers
            yield
            return
        former: dict[int, Any] = {}
        try:
            for signum in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(signum) is not signal.SIG_IGN:  # as a shell's background job has it
                    former[signum] = signal.signal(signum, self._take)
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def check(self) -> None:
        """Raises Interrupted if a signal has come."""
        if self._signum is not None:
            raise Interrupted(self._signum)

    def _take(self, signum: int, frame: FrameType | None) -> None:
        if self._signum is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt("stopped at once")
        if self._signum is None:
            sys.stderr.write(f"\n{signal.Signals(signum).name}: finishing the step, then writing a checkpoint\n")
        self._signum = signum
        if self.safe:
            self.safe = False
            raise Interrupted(signum)
