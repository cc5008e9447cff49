"""The uploader's process, which sends a run's journal to MLflow so that training never waits for a store.

`UploaderProcess` is training's end of it, `main` the process. They exchange lines of JSON through pipes: the address
first, since other users can read a command line. Neither mlflow nor torch is imported at the top.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feedrate.errors import UserError
from feedrate.system.secrets import without_secrets
from feedrate.tracking.journal import JOURNAL, JournalBusy, JournalLock, UploadState
from feedrate.tracking.store import StoreFault
from feedrate.tracking.uploader import Destination, Uploader

if TYPE_CHECKING:
    from feedrate.config import TrackingConfig
    from feedrate.tracking.mlflow_writer import MLflowWriter
    from feedrate.tracking.system_metrics import SystemReadings

SOURCE = Path(__file__).resolve().parents[2]

# Training waits, s
IMPORT_S = 60.0  # at the start, for MLflow's import on a busy machine
OPENING_S = 6.0  # at the start, for the store's answer; it gives up after 5 s
PATIENCE_S = 10.0  # at the end, without progress
FILE_PATIENCE_S = 30.0  # the same of an SQLite file, whose writers wait for each other for up to 20 s
FIRST_S = 120.0  # the same of a store that is still being created
HURRY_S = 3.0  # the same after a signal
BYTES_PER_S = 1_000_000  # assumed for the file that is being sent, which shows no progress

# The process
POLL_S = 0.2  # between looks at the journal; a message wakes it at once
SYSTEM_EVERY_S = 10.0
RETRY_S = 2.0  # between two attempts while the store is away
LAST_S = 9.0  # it outlives training by no more than that
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # it repeats requests itself
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "OMP_NUM_THREADS": "1",
}


class UploaderProcess:
    """A running uploader.

    Args:
        config: the group `tracking`, with a `uri`.
    """

    def __init__(self, config: TrackingConfig) -> None:
        assert config.uri is not None
        self._folder: Path | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-m", "feedrate.tracking.uploader_process"],
            cwd=SOURCE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,  # so that `select` sees every line
            start_new_session=True,  # signals to training's group do not reach it
        )
        settings = Destination(config.uri, config.artifacts, config.experiment)
        self._send(destination=asdict(settings), parent=os.getpid())

    def opened(self) -> str:
        """Waits until the store is open; an empty text, or why it is not yet.

        Raises:
            UserError: the settings are wrong.
        """
        answer = self._receive(IMPORT_S)
        if "ready" in answer:
            answer = self._receive(OPENING_S)
        if "mistake" in answer:
            self.stop()
            raise UserError(answer["mistake"])
        return str(answer.get("fault", "")) if answer else "the store has not been opened yet"

    def upload(self, folder: Path, system_metrics: bool) -> None:
        """Uploads that run folder's journal from now on."""
        self._folder = folder
        self._send(folder=str(folder), system_metrics=system_metrics)

    def upload_dead_run(self, folder: Path) -> None:
        """Also uploads what a dead run left behind."""
        self._send(dead=str(folder))

    def finish(self, *, is_file: bool, hurry: bool) -> bool:
        """Waits until everything is uploaded, while there is progress, and ends the process; whether it is.

        Args:
            is_file: the store is an SQLite file.
            hurry: the run ends because of a signal.
        """
        assert self._folder is not None
        self._send(end=True)
        seen, since = None, time.monotonic()
        try:
            while self._process.poll() is None:
                state = UploadState.read(self._folder)
                progress = (state.offset, state.system_offset, state.sending, len(state.aside))
                if progress != seen:
                    seen, since = progress, time.monotonic()
                if time.monotonic() - since > _patience_s(state, is_file, hurry):
                    break
                time.sleep(0.02)
        finally:
            done = self._process.poll() == 0
            self.stop()
        return done

    def stop(self) -> None:
        """Ends the process at once; what it has not sent stays in the journal."""
        with suppress(OSError):
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def _send(self, **message: Any) -> None:
        with suppress(OSError, ValueError):  # it has ended, which `finish` sees
            assert self._process.stdin is not None
            self._process.stdin.write(f"{json.dumps(message)}\n".encode())

    def _receive(self, seconds: float) -> dict[str, Any]:
        """The next line of the process, empty if there is none in time."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        line = self._process.stdout.readline() if ready else b""
        return dict(json.loads(line)) if line else {}


def _patience_s(state: UploadState, is_file: bool, hurry: bool) -> float:
    if hurry:
        return HURRY_S
    if not state.run_id and not state.error:
        return FIRST_S
    return (FILE_PATIENCE_S if is_file else PATIENCE_S) + state.sending / BYTES_PER_S


# -- The process -----------------------------------------------------------------------------------------


class _Loop:
    """Uploads one run's journal, and those of dead runs, until the run has ended or training is gone."""

    def __init__(self, uploader: Uploader, parent: int, messages: queue.Queue[dict[str, Any]]) -> None:
        self._uploader, self._parent, self._messages = uploader, parent, messages
        self._folder: Path | None = None
        self._writer: MLflowWriter | None = None
        self._dead: list[Path] = []
        self._system: SystemReadings | None = None
        self._next_system = 0.0
        self._ending = self._orphan = False
        self._end_offset: int | None = None  # of the journal when training was found gone
        self._next_attempt = 0.0

    def run(self) -> None:
        while True:
            self._read_message()
            if not self._orphan and os.getppid() != self._parent:
                self._orphan = self._ending = True
                if self._folder is not None and (journal := self._folder / JOURNAL).exists():
                    self._end_offset = journal.stat().st_size
            if self._ending and self._system is not None:
                self._system.stop()
                self._system = None
            if self._ending and self._folder is None:
                return
            if time.monotonic() >= self._next_attempt and self._attempt() and self._ending:
                return

    def note_failure(self, error: str) -> None:
        """Sets the time of the next attempt, and writes down why if there is no writer to do so."""
        self._next_attempt = time.monotonic() + RETRY_S
        if self._folder is not None and self._writer is None:
            with suppress(OSError, JournalBusy):  # the state belongs to the process that holds the lock
                lock = JournalLock(self._folder)
                state = UploadState.read(self._folder)
                state.error = without_secrets(error)[:500]
                state.write(self._folder)
                lock.release()

    def _read_message(self) -> None:
        try:
            message = self._messages.get(timeout=POLL_S)
        except queue.Empty:
            return
        if "folder" in message:
            self._folder = Path(message["folder"])
            if message["system_metrics"]:
                from feedrate.tracking.system_metrics import SystemReadings

                self._system = SystemReadings(self._folder, self._parent)
        elif "dead" in message:
            self._dead.append(Path(message["dead"]))
        else:
            self._ending = True

    def _attempt(self) -> bool:
        """Uploads what there is; whether the run and dead runs are complete."""
        try:
            if self._folder is not None:
                self._upload_own(self._folder)
            while self._dead:
                if self._uploader.holds(self._dead[0]):
                    with suppress(JournalBusy, OSError):  # its own uploader is still at it; its folder is gone
                        self._uploader.upload_dead_run(self._dead[0])
                self._dead.pop(0)
        except UserError as error:
            self.note_failure(str(error))
            return False
        return self._writer is not None and (self._orphan or self._writer.finished)

    def _upload_own(self, folder: Path) -> None:
        self._writer = self._writer or self._uploader.writer(folder)
        system = self._ending or time.monotonic() >= self._next_system
        if system:
            self._next_system = time.monotonic() + SYSTEM_EVERY_S
        self._writer.send(self._end_offset, system=system)
        if self._orphan:
            self._writer.close_silent_run()


def main() -> None:
    """The process, from its first line of standard input."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # training ends it
        signal.signal(signum, signal.SIG_IGN)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.disable(logging.CRITICAL)  # errors are written to the state
    settings = json.loads(sys.stdin.readline() or "null")
    if settings is None:
        return
    messages: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(messages,), daemon=True).start()
    threading.Thread(target=_end_after, args=(settings["parent"],), daemon=True).start()
    try:
        uploader = Uploader(Destination(**settings["destination"]))
        loop = _Loop(uploader, settings["parent"], messages)
        import mlflow.tracking  # noqa: F401  # takes two seconds, while training starts

        _say(ready=True)
        uploader.open()
        _say(opened=True)
    except StoreFault as fault:
        loop.note_failure(str(fault))
        _say(fault=str(fault))
    except UserError as mistake:
        _say(mistake=str(mistake))
        sys.exit(1)
    with suppress(OSError):
        os.nice(5)  # the cores belong to training and its workers
    try:
        loop.run()
    except Exception as error:
        loop.note_failure(f"{type(error).__name__}: {error}")
        raise
    os._exit(0)  # MLflow's threads have nothing to finish


def _listen(messages: queue.Queue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        messages.put(json.loads(line))
    messages.put({"end": True})


def _end_after(parent: int) -> None:
    """Ends this process some seconds after training is gone, however long a call to the store takes."""
    while os.getppid() == parent:
        time.sleep(0.5)
    time.sleep(LAST_S)
    os._exit(1)


def _say(**answer: object) -> None:
    with suppress(OSError):
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
