"""Uploads journals to a tracking store: in a separate process while training runs, afterwards in src/sync.py.

`UploaderProcess` is training's end of the process, `main` the process. They exchange lines of JSON through pipes: the
address too, since other users can read a command line. Neither mlflow nor torch is imported at the top.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from feedrate.errors import UserError
from feedrate.system.secrets import MASK, learn
from feedrate.tracking.address import read_address
from feedrate.tracking.journal import JOURNAL, JournalBusy, UploadState, events
from feedrate.tracking.mlflow_writer import MLflowWriter
from feedrate.tracking.store import StoreFault, open_store

if TYPE_CHECKING:
    from feedrate.config import TrackingConfig

SOURCE = Path(__file__).resolve().parents[2]

# Training waits, s
OPENING_S = 30.0  # at the start, for MLflow's import and the store, which has 5 s to answer
PATIENCE_S = 10.0  # at the end, while attempts fail
SENDING_S = 120.0  # at the end, while something is sent
HURRY_S = 3.0  # at the end, after a signal

# The process
POLL_S = 0.2  # between readings of the journal; a message wakes the process at once
RETRY_S = 2.0  # between two attempts while the store is away
LAST_S = 9.0  # it outlives training by no more than that
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # it repeats requests itself
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "OMP_NUM_THREADS": "1",
}


class Uploader:
    """Opens a store, and uploads journals to it.

    Raises:
        StoreFault: the store is away.
        UserError: it cannot be used.
    """

    def __init__(self, uri: str, artifacts: str | None, experiment: str) -> None:
        learn({"uri": uri})
        self._address = read_address(uri, artifacts)
        self._store = open_store(self._address, experiment)

    def writer(self, folder: Path) -> MLflowWriter:
        """The writer of a run folder's journal; raises JournalBusy."""
        return MLflowWriter(folder, self._address, *self._store)

    def upload_dead_run(self, folder: Path) -> UploadState:
        """Uploads what is left of a run whose process has ended, and marks it as KILLED if it has no end event."""
        with closing(self.writer(folder)) as writer:
            writer.send()
            writer.close_silent_run()
            return writer.state

    def holds(self, folder: Path) -> bool:
        """Whether the run of a folder was uploaded to this store, or to none yet."""
        return UploadState.read(folder).store in ("", self._address.shown)


# -- Journals that are not uploaded yet ---------------------------------------------------------------------


def journals(paths: Iterable[Path]) -> list[Path]:
    """Folders with a journal at or up to two levels below the paths; a sweep comes before its jobs."""
    return sorted(
        {found.parent for path in paths for level in ("", "*/", "*/*/") for found in path.glob(level + JOURNAL)}
    )


def pending(folder: Path) -> int:
    """Number of records that the store lacks; at least one for a run that still runs according to the store."""
    state = UploadState.read(folder)
    return state.left(folder) + len(state.aside) or int(state.alive)


def destination(folder: Path, uri: str | None) -> tuple[str, str | None, str]:
    """Where the run was to be recorded, as arguments of Uploader; `uri` names another store.

    Raises:
        UserError: the address is not known, or holds a password, which is not kept.
    """
    begin: dict[str, Any] = next((event for event, _ in events(folder / JOURNAL)), {})
    experiment = begin.get("experiment") or "feedrate"
    if uri is not None:
        return uri, None, experiment
    own = begin.get("uri") or ""
    if not own or f"{MASK}@" in own:
        raise UserError(f"{folder}: its journal has no address that can be used ({own}); give tracking.uri=")
    return own, begin.get("artifacts"), experiment


# -- Training's end of the process --------------------------------------------------------------------------


class UploaderProcess:
    """A running uploader, for the store that the group `tracking` names."""

    def __init__(self, config: TrackingConfig) -> None:
        self._fault = ""  # why the store could not be opened
        self._process = subprocess.Popen(
            [sys.executable, "-m", "feedrate.tracking.uploader"],
            cwd=SOURCE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # signals to training's group do not reach it
        )
        self._send(destination=[config.uri, config.artifacts, config.experiment], parent=os.getpid())

    def opened(self) -> str:
        """Waits until the store is open; an empty text, or why it is not yet.

        Raises:
            UserError: the settings are wrong.
        """
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], OPENING_S)
        answer = json.loads((self._process.stdout.readline() if ready else b"") or "{}")
        if "mistake" in answer:
            self.stop()
            raise UserError(answer["mistake"])
        self._fault = answer.get("fault", "the store has not been opened yet")
        return self._fault

    def upload(self, folder: Path, system_metrics: bool) -> None:
        """Uploads that run folder's journal from now on."""
        self._send(folder=str(folder), system_metrics=system_metrics)

    def upload_dead_run(self, folder: Path) -> None:
        """Also uploads what a dead run left behind."""
        self._send(dead=str(folder))

    def finish(self, folder: Path, *, hurry: bool) -> str:
        """Ends the process when everything is uploaded, or there is no progress; an empty text, or what is wrong."""
        self._send(end=True)
        seen: Any = None
        since, error = time.monotonic(), ""
        try:
            while self._process.poll() is None:
                state = UploadState.read(folder)
                error = state.error or ("" if state.run_id else self._fault)
                progress = (state.offsets, len(state.aside), error)
                if progress != seen:
                    seen, since = progress, time.monotonic()
                patience_s = HURRY_S if hurry else PATIENCE_S if error else SENDING_S
                if time.monotonic() - since > patience_s:
                    break
                time.sleep(0.02)
            return "" if self._process.poll() == 0 else error or "no answer yet"
        finally:
            self.stop()

    def stop(self) -> None:
        """Ends the process at once; what it has not sent stays in the journal."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _send(self, **message: Any) -> None:
        with suppress(OSError, ValueError):  # it has ended, which `finish` sees
            assert self._process.stdin is not None
            self._process.stdin.write(f"{json.dumps(message)}\n".encode())


# -- The process --------------------------------------------------------------------------------------------


def main() -> None:
    """The process: opens the store, and uploads what its messages name until the run has ended or training is gone."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # training ends it
        signal.signal(signum, signal.SIG_IGN)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.disable(logging.CRITICAL)  # errors are written to the state
    messages = open(0, "rb", buffering=0)  # noqa: SIM115  # without a buffer, so that `select` sees every line
    settings = _receive(messages, timeout_s=None)
    if "destination" not in settings:
        return
    threading.Thread(target=_end_after, args=(settings["parent"],), daemon=True).start()
    uploader, answer = None, {"fault": ""}
    try:
        uploader = Uploader(*settings["destination"])
    except StoreFault as fault:
        answer = {"fault": str(fault)}
    except UserError as mistake:
        answer = {"mistake": str(mistake)}
    with suppress(OSError):
        print(json.dumps(answer), flush=True)
    if "mistake" in answer:
        sys.exit(1)
    with suppress(OSError):
        os.nice(5)  # the cores belong to training and its workers
    _upload(uploader, settings, messages)
    os._exit(0)  # MLflow's threads have nothing to finish


def _upload(uploader: Uploader | None, settings: dict[str, Any], messages: IO[bytes]) -> None:
    folder = writer = system = None
    dead: list[Path] = []
    ending = orphan = False
    next_attempt = 0.0
    while True:
        message = {} if ending else _receive(messages, POLL_S)
        if "folder" in message:
            folder = Path(message["folder"])
            if message["system_metrics"]:
                from feedrate.tracking.system_metrics import SystemReadings

                system = SystemReadings(folder, settings["parent"])
        if "dead" in message:
            dead.append(Path(message["dead"]))
        # the pipe of a killed process is closed before its children have another parent
        orphan = orphan or "gone" in message or os.getppid() != settings["parent"]
        if system is not None and not ending:
            system.take(last=orphan or "end" in message)
        ending = ending or orphan or "end" in message
        if time.monotonic() < next_attempt:
            time.sleep(POLL_S if ending else 0)
            continue
        try:
            uploader = uploader or Uploader(*settings["destination"])
            if folder is not None:
                writer = writer or uploader.writer(folder)
                writer.send()
                if orphan:
                    writer.close_silent_run()
            while dead:
                if uploader.holds(dead[0]):
                    with suppress(JournalBusy, OSError):  # its own uploader is still at it; its folder is gone
                        uploader.upload_dead_run(dead[0])
                dead.pop(0)
        except UserError:
            next_attempt = time.monotonic() + RETRY_S
        else:
            if ending:
                return


def _receive(messages: IO[bytes], timeout_s: float | None) -> dict[str, Any]:
    """The next message, empty if there is none in time, 'gone' if there will be none."""
    ready, _, _ = select.select([messages], [], [], timeout_s)
    return dict(json.loads(messages.readline() or '{"gone": true}')) if ready else {}


def _end_after(parent: int) -> None:
    """Ends this process some seconds after training has ended, even during a call to the store."""
    while os.getppid() == parent:
        time.sleep(0.5)
    time.sleep(LAST_S)
    os._exit(1)


if __name__ == "__main__":
    main()
