"""One job of a sweep as a process: started, shown while it runs, stopped, and its status read from how it ended."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from feedrate.runs.run_folder import read_summary
from feedrate.system.signals import STOPPING

GPUS = "CUDA_VISIBLE_DEVICES"
_DRAIN_S = 5.0
_PR_SET_PDEATHSIG = 1  # prctl(2)
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class JobProcess:
    """A running job, in a session of its own, so that its workers can be killed with it.

    On Linux it gets SIGTERM when the launcher dies: two sweeps would otherwise train the same job. Each line of output
    begins with `prefix`; with None the job writes to the terminal itself, live line and all. It reads `sent` from
    standard input, a file without a name, since that may hold secrets.
    """

    def __init__(self, command: Sequence[str], sent: bytes, environment: Mapping[str, str], prefix: str | None) -> None:
        sys.stdout.flush()
        with tempfile.TemporaryFile() as file:
            file.write(sent)
            file.seek(0)
            self._process = subprocess.Popen(
                command,
                env=dict(environment),
                stdin=file,
                stdout=None if prefix is None else subprocess.PIPE,
                stderr=None if prefix is None else subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_launcher if _LIBC is not None else None,  # noqa: PLW1509
            )
        self._reader = threading.Thread(target=_show, args=(self._process.stdout, prefix), daemon=True)
        self._reader.start()

    def ended(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        code = self._process.poll()
        if code is not None:
            if code != 0:
                self.send(signal.SIGKILL)  # workers that are left
            self._reader.join(_DRAIN_S)
        return code

    def send(self, signum: int) -> None:
        """Sends the job a signal; SIGKILL also ends its workers."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if signum == signal.SIGKILL:
                os.killpg(self._process.pid, signum)
            else:
                self._process.send_signal(signum)


def _show(pipe: IO[bytes] | None, prefix: str | None) -> None:
    for raw in pipe or ():
        if line := raw.decode(errors="replace").rstrip("\n"):
            print(f"{prefix}{line}", flush=True)


def _end_with_launcher() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)  # type: ignore[union-attr]


def outcome(code: int, folder: Path) -> tuple[str, str]:
    """Status and error of a job that has ended, from its exit code and the summary.json in its folder."""
    summary = read_summary(folder)
    if code == 0 and summary.get("status") == "FINISHED":
        return "FINISHED", ""
    if code < 0:
        name = signal.Signals(-code).name
        reason = "; the system does that when memory is short" if name == "SIGKILL" else ""
        return "KILLED", f"killed by {name}{reason}"
    status = "KILLED" if code - 128 in STOPPING else "FAILED"
    return status, str(summary.get("error") or f"exit code {code}; its output says why")


def visible_gpus() -> list[str]:
    """NVIDIA GPUs as CUDA_VISIBLE_DEVICES names them, found without loading CUDA; empty where none is known."""
    if (given := os.environ.get(GPUS)) is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return [str(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles]  # CUDA numbers the fastest first
    except Exception:  # no such library, no driver, or no GPU
        return []
