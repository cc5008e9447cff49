"""Ctrl-C, SIGTERM and a closed terminal at the launcher: told to the loop that waits for jobs, and the exit code.

How the jobs are stopped is decided by that loop.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from feedrate.system.interrupt import Interrupted
from feedrate.system.signals import take


class Stop:
    """Whether the sweep was asked to stop.

    Attributes:
        signum: the first signal that came; None so far.
        called: is called at the first signal.
        called_again: is called at the next Ctrl-C; at a further one the process stops wherever it is. Other signals are
            said more than once by those who send them: a shell and the system when a terminal is closed.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.called: Callable[[], None] = lambda: None
        self.called_again: Callable[[], None] = lambda: None
        self._hurried = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within it signals are taken; at its end one that came is raised as Interrupted, exit code 128 + signal.

        An error on the way out is the signal's echo and gives way to it.
        """
        former: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():  # only it may set handlers
            former = take(self._take)
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
        if self.signum is None:
            self.signum = signum
            self.called()
        elif signum == signal.SIGINT and not self._hurried:
            self._hurried = True
            self.called_again()
        elif signum == signal.SIGINT:
            raise Interrupted(self.signum)
