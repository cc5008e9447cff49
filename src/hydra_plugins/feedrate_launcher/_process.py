"""One job of a sweep as a process: started, shown while it runs, stopped, and its status read from how it ended."""

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

from feedrate.runs.run_folder import read_summary
from feedrate.system.signals import STOPPING

GRACE_S = 10.0  # from a signal until a job is killed, in which it writes a checkpoint
_LAST_LINES = 30  # of stderr, from which the error is read
_DRAIN_S = 5.0
_STOPPED = [128 + signum for signum in STOPPING]  # exit codes
_PR_SET_PDEATHSIG = 1  # prctl(2)
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_terminal = threading.Lock()


class JobProcess:
    """A running job, in a session of its own, so that its workers can be killed with it.

    On Linux it gets SIGTERM when the launcher dies: two sweeps would otherwise train the same job. Each line of output
    begins with `prefix`; with None the job writes to the terminal itself, live line and all.
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
        self._last_lines: deque[str] = deque(maxlen=_LAST_LINES)
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
            self.send(signal.SIGKILL)  # workers that are left
        for reader in self._readers:
            reader.join(_DRAIN_S)
        return code

    def send(self, signum: int) -> None:
        """Sends the job a signal; SIGKILL also ends its workers."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if signum == signal.SIGKILL:
                os.killpg(self._process.pid, signum)
            else:
                self._process.send_signal(signum)

    @property
    def error(self) -> str:
        """The last error that the job wrote, or an empty text."""
        lines = [line for line in self._last_lines if line.strip()]
        begin = next((i for i in reversed(range(len(lines))) if lines[i].startswith("error: ")), len(lines) - 1)
        return "\n".join(lines[max(begin, 0) :]).removeprefix("error: ")

    def _show(self, pipe: IO[bytes], screen: IO[str], prefix: str) -> None:
        for raw in pipe:
            line = raw.decode(errors="replace").rstrip("\n")
            if screen is sys.stderr:
                self._last_lines.append(line)
            if line or not prefix:
                with _terminal:
                    print(f"{prefix}{line}", file=screen, flush=True)


def outcome(code: int, folder: Path, error: str) -> tuple[str, str]:
    """Status and error of a job that has ended, from its exit code, the summary.json in its folder and its stderr."""
    summary = read_summary(folder)
    if code == 0:
        finished = summary.get("status") == "FINISHED"
        return ("FINISHED", "") if finished else ("FAILED", "it ended with exit code 0 and left no result")
    if code < 0:
        name = signal.Signals(-code).name
        reason = "; the system does that when memory is short" if name == "SIGKILL" else ""
        return "KILLED", f"killed by {name}{reason}"
    return ("KILLED" if code in _STOPPED else "FAILED"), str(summary.get("error") or error or f"exit code {code}")


def _end_with_launcher() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)  # type: ignore[union-attr]
