"""The training process's end of the courier: starts it, hears whether the store could be opened, and waits at the end.

What the courier does is in courier.py. Neither mlflow nor torch is imported here.
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

from feedrate.errors import UserError
from feedrate.tracking.journal import Delivered

if TYPE_CHECKING:
    from feedrate.config import TrackingConfig

SOURCE = Path(__file__).resolve().parents[2]
IMPORT_S = 60.0  # for MLflow's import, on a machine that is busy with other things
OPENING_S = 5.0  # for the store's answer
STALL_S = 10.0  # without progress at the end
BYTES_PER_S = 1_000_000  # at which a file is thought to be on its way, when nothing else is seen


class CourierProcess:
    """A running courier. The address goes through a pipe, since other users can read a command line.

    Args:
        config: the group `tracking`, with a `uri`.
    """

    def __init__(self, config: TrackingConfig) -> None:
        self._settings = {"uri": config.uri, "artifacts": config.artifacts, "experiment": config.experiment}
        self._folder: Path | None = None
        self._system_metrics = False
        self._rest = b""
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "feedrate.tracking.courier"],
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
            return "the courier has not started yet"
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

        Returns whether it is. Nothing of the courier is left then.
        """
        assert self._folder is not None
        if self._process.poll() is not None:  # killed by somebody; the journal knows where to go on
            self._start()
            self._send(folder=str(self._folder), system_metrics=False)
        self._send(end=True)
        seen, since = None, time.monotonic()
        try:
            while self._process.poll() is None:
                state = Delivered.read(self._folder)
                now = (state.parts, state.offset, state.system_offset, state.sending)
                if now != seen:
                    seen, since = now, time.monotonic()
                transfer_s = state.sending / BYTES_PER_S if patience_s >= STALL_S else 0.0
                if time.monotonic() - since > patience_s + transfer_s:
                    break
                time.sleep(0.02)
        finally:
            done = self._process.poll() == 0
            self.stop()
        return done

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
                return None
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return dict(json.loads(line))
