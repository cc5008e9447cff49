"""A command in a session of its own, as a person starts, interrupts and kills it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

import psutil

from feedrate.config import ROOT

PATIENCE_S = 120


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

    def close(self) -> None:
        for process in self.group():
            process.kill()
        self.process.communicate()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)
