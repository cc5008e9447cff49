"""The training process's end of the uploader: starts it, hears whether the store could be opened, and waits at the end.

What the uploader does is in uploader.py. Neither mlflow nor torch is imported here.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from feedrate.errors import UserError
from feedrate.tracking.journal import Delivered

if TYPE_CHECKING:
    from feedrate.config import TrackingConfig

SOURCE = Path(__file__).resolve().parents[2]
IMPORT_S = 60.0  # for MLflow's import, on a machine that is busy with other things
FIRST_S = 120.0  # at the end of a run, for a store that is still being made, by this uploader or that of another run
OPENING_S = 5.0  # for the store's answer
STALL_S = 10.0  # without progress at the end; who waits for less is in a hurry
WORK_S = 0.05  # of processor time count as progress: a busy machine, not a store that is away
BYTES_PER_S = 1_000_000  # at which a file is thought to be on its way, when nothing else is seen


class UploaderProcess:
    """A running uploader. The address goes through a pipe, since other users can read a command line.

    Args:
        config: the group `tracking`, with a `uri`.
    """

    def __init__(self, config: TrackingConfig) -> None:
        self._settings = {"uri": config.uri, "artifacts": config.artifacts, "experiment": config.experiment}
        self._folder: Path | None = None
        self._system_metrics = False
        self._rest = b""
        self._told = False
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "feedrate.tracking.uploader"],
            cwd=SOURCE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # signals to training's group are not meant for it
        )
        self._send(**self._settings, parent=os.getpid())

    def opened(self) -> str:
        """Waits until the store is open; an empty text, or why it is not yet.

        Raises:
            UserError: the settings are wrong, so that it never will be.
        """
        if (verdict := self._hear(IMPORT_S)) is None:
            return "the uploader has not started yet"
        if "ready" in verdict and (verdict := self._hear(OPENING_S)) is None:
            return f"the store has not been opened within {OPENING_S:.0f} s"
        if "mistake" in verdict:
            self.stop()
            raise UserError(verdict["mistake"])
        return str(verdict.get("fault", ""))

    def take(self, folder: Path, system_metrics: bool) -> None:
        """From now on it carries that run folder's journal."""
        self._folder, self._system_metrics = folder, system_metrics
        self._send(folder=str(folder), system_metrics=system_metrics)

    def close_dead(self, folder: Path) -> None:
        """It also carries what a dead run left behind, and marks it."""
        self._send(dead=str(folder))

    def finish(self, patience_s: float) -> bool:
        """Waits until everything is delivered: as long as there is progress, but no longer than that without any.

        A store that is only being made is waited for longer, unless there is a hurry.
        Returns whether it is. Nothing of the uploader is left then.
        """
        assert self._folder is not None
        if self._process.poll() is not None:  # killed by somebody; the journal knows where to go on
            self._start()
            self._told = True  # its word is not waited for a second time
            self._send(folder=str(self._folder), system_metrics=False)
        self._send(end=True)
        seen, since, worked_s = None, time.monotonic(), self._worked_s()
        try:
            while self._process.poll() is None:
                state = Delivered.read(self._folder)
                now = (state.parts, state.offset, state.system_offset, state.sending)
                if now != seen:
                    seen, since, worked_s = now, time.monotonic(), self._worked_s()
                allowed_s = patience_s
                if patience_s >= STALL_S:
                    allowed_s = patience_s + state.sending / BYTES_PER_S if self._told else FIRST_S
                if time.monotonic() - since > allowed_s:
                    if patience_s < STALL_S or self._worked_s() - worked_s < WORK_S:
                        break
                    since, worked_s = time.monotonic(), self._worked_s()
                if self._told:
                    time.sleep(0.02)
                elif self._hear(0.02) is not None and self._told:
                    since = time.monotonic()
        finally:
            done = self._process.poll() == 0
            self.stop()
        return done

    def _worked_s(self) -> float:
        """Processor time of the uploader's main thread, s; 0.0 where the system does not tell."""
        with suppress(psutil.Error, OSError):
            threads = psutil.Process(self._process.pid).threads()
            return float(sum(t.user_time + t.system_time for t in threads if t.id == self._process.pid))
        return 0.0

    def stop(self) -> None:
        """Ends it at once; what it has not delivered stays in the journal."""
        with suppress(OSError):
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def _send(self, **message: Any) -> None:
        with suppress(OSError, ValueError):  # it has ended, which is seen at the end
            assert self._process.stdin is not None
            self._process.stdin.write(f"{json.dumps(message)}\n".encode())
            self._process.stdin.flush()

    def _hear(self, seconds: float) -> dict[str, Any] | None:
        """The next line of its standard output, None if there is none in time."""
        assert self._process.stdout is not None
        end = time.monotonic() + seconds
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                return None
            more = os.read(self._process.stdout.fileno(), 65536)
            if not more:
                self._told = True  # it has ended
                return None
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        verdict = dict(json.loads(line))
        self._told = self._told or "ready" not in verdict
        return verdict
