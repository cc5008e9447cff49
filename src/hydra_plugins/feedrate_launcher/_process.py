"""One job of a sweep as a process of its own: started, shown while it runs, stopped, and told apart by how it ended.

Which jobs there are, and when they start, is decided by the launcher.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from feedrate.reporting.sweep_results import read_summary
from feedrate.system.signals import STOPPING

GRACE_S = 10.0  # what a job that is asked to stop may take for its checkpoint
_LAST_WORDS = 30  # lines of stderr that are kept to tell an error
_DRAIN_S = 5.0
_STOPPED = [128 + signum for signum in STOPPING]  # exit codes
_PR_SET_PDEATHSIG = 1  # prctl(2)
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_terminal = threading.Lock()


class JobProcess:
    """A running job, in a session of its own so that its workers can be found and ended with it.

    On Linux it gets SIGTERM when the launcher dies: two sweeps would otherwise train the same job.

    Args:
        command: the program and its arguments.
        environment: of the process.
        prefix: stands before each line of output; None: the job writes to the terminal itself, live line and all.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], prefix: str | None) -> None:
        sys.stdout.flush()
        self._process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=None if prefix is None else subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=_end_with_launcher if _LIBC is not None else None,  # noqa: PLW1509
        )
        self._last_words: deque[str] = deque(maxlen=_LAST_WORDS)
        pairs = ((self._process.stdout, sys.stdout), (self._process.stderr, sys.stderr))
        self._readers = [
            threading.Thread(target=self._show, args=(pipe, screen, prefix or ""), daemon=True)
            for pipe, screen in pairs
            if pipe is not None
        ]
        for reader in self._readers:
            reader.start()

    def wait(self) -> int:
        """Exit code, negative for a signal; returns when nothing of the job is left."""
        code = self._process.wait()
        if code != 0:
            self.kill()  # workers that it left behind
        for reader in self._readers:
            reader.join(_DRAIN_S)
        return code

    def interrupt(self, signum: int) -> None:
        """Passes a signal on; the job may then write a checkpoint."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signum)

    def kill(self) -> None:
        """Ends the job and all its workers at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    @property
    def error(self) -> str:
        """The last error that it wrote; empty where there is none."""
        lines = [line for line in self._last_words if line.strip()]
        begin = next((i for i in reversed(range(len(lines))) if lines[i].startswith("error: ")), len(lines) - 1)
        return "\n".join(lines[max(begin, 0) :]).removeprefix("error: ")

    def _show(self, pipe: IO[bytes], screen: IO[str], prefix: str) -> None:
        for raw in pipe:
            line = raw.decode(errors="replace").rstrip("\n")
            if screen is sys.stderr:
                self._last_words.append(line)
            if line or not prefix:  # what sets lines of one job apart does not among those of several
                with _terminal:
                    print(f"{prefix}{line}", file=screen, flush=True)


def outcome(code: int, folder: Path, error: str) -> tuple[str, str]:
    """Status and error of a job that has ended.

    Args:
        code: as `JobProcess.wait` returns it.
        folder: its run folder; its summary.json knows more than the exit code.
        error: its last words.
    """
    summary = read_summary(folder)
    if code == 0:
        if summary.get("status") == "FINISHED":
            return "FINISHED", ""
        return "FAILED", "it ended with exit code 0 and left no result"
    if code < 0:
        name = signal.Signals(-code).name
        reason = "; the system does that when memory is short" if name == "SIGKILL" else ""
        return "KILLED", f"killed by {name}{reason}"
    said = str(summary.get("error") or error or f"exit code {code}")
    return ("KILLED" if code in _STOPPED else "FAILED"), said


def _end_with_launcher() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)  # type: ignore[union-attr]
