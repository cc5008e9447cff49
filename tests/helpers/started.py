"""A command in a session of its own, as a person starts, interrupts and kills it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil

from feedrate.config import ROOT

T = TypeVar("T")
PATIENCE_S = 300
ATTEMPTS = 20


class Started:
    """The command in a session of its own, so that a signal to its group reaches it as a terminal's Ctrl-C would.

    Args:
        script: below src/.
    """

    def __init__(self, script: str, *arguments: str, python: tuple[str, ...] = ()) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *python, str(ROOT / "src" / script), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def group(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if os.getpgid(process.pid) == self.process.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue
        return found

    def all_ended(self) -> bool:
        return not self.group()

    def stop(self) -> None:
        """Stops it where it is, until it is sent SIGCONT."""
        self.process.send_signal(signal.SIGSTOP)
        at_rest = (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
        until(lambda: psutil.Process(self.process.pid).status() in at_rest)

    def close(self) -> None:
        for process in self.group():
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended just now
                process.kill()
        self.process.communicate()


def comes(condition: Callable[[], bool], seconds: float, pause: float = 0.002) -> bool:
    """Waits at most `seconds` for a condition; whether it has become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


def until(condition: Callable[[], bool]) -> None:
    assert comes(condition, PATIENCE_S), "waited in vain"


def in_the_middle(folder: Path, disturb: Callable[[Path], T | None]) -> T:
    """What `disturb` returns, which disturbs a command that works in the folder it is given, a new one each time.

    None from it means that the command was done before: on a busy machine it may be the test that waits for its turn.
    """
    for number in range(ATTEMPTS):
        place = folder / f"attempt{number}"
        place.mkdir()
        if (found := disturb(place)) is not None:
            return found
    raise AssertionError("the command was done each time before it could be disturbed")
