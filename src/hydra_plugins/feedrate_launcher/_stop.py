"""Ctrl-C and SIGTERM at the launcher: remembered, told to the loop that waits for jobs, and answered by the exit code.

How the jobs are stopped is decided by that loop.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from feedrate.trainer.interrupt import Interrupted


class Stop:
    """Whether the sweep was asked to stop.

    Attributes:
        signum: the first signal that came; None so far.
        called: is called at the first signal.
        called_again: is called at the second; at the third the process stops wherever it is.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.called: Callable[[], None] = lambda: None
        self.called_again: Callable[[], None] = lambda: None
        self._count = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within it signals are taken; at its end one that came is raised as Interrupted, exit code 130 or 143.

        An error on the way out is the signal's echo and gives way to it.
        """
        former: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():  # only it may set handlers
            for signum in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(signum) is not signal.SIG_IGN:  # as a shell's background job has it
                    former[signum] = signal.signal(signum, self._take)
        try:
            yield
        except Exception as error:
            if self.signum is None:
                raise
            raise Interrupted(self.signum) from error
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
        if self.signum is not None:
            raise Interrupted(self.signum)

    def _take(self, signum: int, frame: FrameType | None) -> None:
        self._count += 1
        self.signum = self.signum or signum
        if self._count == 1:
            self.called()
        elif self._count == 2:
            self.called_again()
        else:
            raise Interrupted(self.signum)
