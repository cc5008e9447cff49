"""The uploader: a process of its own that carries a run's journal to MLflow, so that training never waits for a server.

It is started and asked by uploader_process.py; how an event becomes MLflow's calls is in delivery.py. It reads lines of
JSON from standard input (first the address of the store) and writes to standard output whether it could open it.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feedrate.errors import UserError
from feedrate.system.secrets import learn, without_secrets
from feedrate.tracking.address import read_address
from feedrate.tracking.journal import JOURNAL, Delivered, SweepLock
from feedrate.tracking.store import StoreFault, open_answering, require_answer

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from feedrate.tracking.mlflow_writer import MLflowWriter
    from feedrate.tracking.system import SystemReadings

POLL_S = 0.2  # between looks at the journal; a message wakes it at once
LAST_WORDS_S = 9.0  # what it may take when training is gone
SYSTEM_EVERY_S = 10.0
LONGEST_WAIT_S = 10.0

_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # tried again here
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",  # a slow server is no fault, and nobody waits
    "OMP_NUM_THREADS": "1",
}


class Uploader:
    """Carries one run's journal, and those of dead runs that it is told of, until it is told to end.

    Args:
        settings: `uri`, `artifacts`, `experiment`, `parent` (number of the training process).
    """

    def __init__(self, settings: dict[str, Any], messages: queue.Queue[dict[str, Any] | None]) -> None:
        learn(settings)
        self._settings = settings
        self._messages = messages
        self._store: tuple[MlflowClient, str] | None = None
        self._folder: Path | None = None
        self._delivery: MLflowWriter | None = None
        self._dead: list[Path] = []
        self._system: SystemReadings | None = None
        self._ending = False
        self._orphan = False
        self._last_size: int | None = None  # of the journal when training was found gone
        self._failures = 0
        self._next_attempt = 0.0
        self._next_system = 0.0

    def run(self) -> None:
        """Returns when there is nothing left to do."""
        self._first_opening()
        _be_modest()
        while True:
            self._read_messages()
            self._see_parent()
            if self._ending and self._folder is None:
                return
            if time.monotonic() >= self._next_attempt or (self._ending and self._failures == 0):
                done = self._attempt()
                if done:
                    return

    def _first_opening(self) -> None:
        try:
            address = read_address(self._settings["uri"], self._settings["artifacts"])
            require_answer(address)
            import mlflow.tracking  # noqa: F401  # takes two seconds, beside the start of training

            _say(ready=True)
            self._store = open_answering(address, self._settings["experiment"])
        except StoreFault as fault:
            self._failed(str(fault))
            _say(fault=str(fault))
        except UserError as mistake:
            _say(mistake=str(mistake))
            sys.exit(1)
        else:
            _say(opened=True)

    def _attempt(self) -> bool:
        """Carries what there is; whether all is done."""
        try:
            self._open()
            if self._store is not None and self._folder is not None:
                self._carry_own()
            while self._dead and self._store is not None:
                self._carry_dead(self._dead[0])
                self._dead.pop(0)
        except (UserError, BlockingIOError) as error:
            self._failed(str(error))
            return False
        self._failures = 0
        own_done = self._delivery is not None and (self._orphan or self._delivery.finished)
        return self._ending and own_done and not self._dead

    def _open(self) -> None:
        from feedrate.tracking.mlflow_writer import MLflowWriter

        if self._store is None:
            address = read_address(self._settings["uri"], self._settings["artifacts"])
            require_answer(address)
            self._store = open_answering(address, self._settings["experiment"])
        if self._delivery is None and self._folder is not None:
            address = read_address(self._settings["uri"], self._settings["artifacts"])
            self._delivery = MLflowWriter(self._folder, address, *self._store)

    def _carry_own(self) -> None:
        assert self._delivery is not None
        system = self._ending or time.monotonic() >= self._next_system
        if system:
            self._next_system = time.monotonic() + SYSTEM_EVERY_S
        self._delivery.deliver(self._last_size, system=system)
        if self._orphan:
            self._delivery.close_silent_run()

    def _carry_dead(self, folder: Path) -> None:
        """The record of another run, whose process is gone."""
        from feedrate.tracking.mlflow_writer import MLflowWriter

        assert self._store is not None
        address = read_address(self._settings["uri"], self._settings["artifacts"])
        if Delivered.read(folder).store not in ("", address.name, address.shown):
            return  # it went elsewhere
        try:
            delivery = MLflowWriter(folder, address, *self._store)
        except (BlockingIOError, OSError):
            return  # its own uploader is still at it
        try:
            delivery.deliver()
            delivery.close_silent_run()
        finally:
            delivery.close()

    def _failed(self, error: str) -> None:
        self._failures += 1
        self._next_attempt = time.monotonic() + min(LONGEST_WAIT_S, 2.0 ** (self._failures - 1))
        if self._folder is not None and self._delivery is None:
            with suppress(OSError):  # not while another process carries this journal: the state is its own
                claim = SweepLock(self._folder)
                state = Delivered.read(self._folder)
                state.error = without_secrets(error)[:500]
                state.write(self._folder)
                claim.release()

    # -----------------------------------------------------------------------------------------------------
    # Training
    # -----------------------------------------------------------------------------------------------------

    def _read_messages(self) -> None:
        try:
            message = self._messages.get(timeout=POLL_S)
        except queue.Empty:
            return
        if message is None:  # standard input was closed
            self._ending = True
        elif "folder" in message:
            self._folder = Path(message["folder"])
            if message["system_metrics"]:
                from feedrate.tracking.system import SystemReadings

                self._system = SystemReadings(self._folder, self._settings["parent"])
        elif "dead" in message:
            self._dead.append(Path(message["dead"]))
        elif "end" in message:
            self._ending = True
            self._next_attempt = 0.0
        if self._ending and self._system is not None:
            self._system.stop()
            self._system = None

    def _see_parent(self) -> None:
        if self._orphan or os.getppid() == self._settings["parent"]:
            return
        self._orphan = self._ending = True
        if self._system is not None:
            self._system.stop()
        if self._folder is not None:
            with suppress(OSError):
                self._last_size = (self._folder / JOURNAL).stat().st_size


def main() -> None:
    """The process's whole life."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # they are meant for training, which ends it
        signal.signal(signum, signal.SIG_IGN)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.disable(logging.CRITICAL)  # what goes wrong stands in the state
    settings = json.loads(sys.stdin.readline() or "null")
    if settings is None:
        return
    messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
    threading.Thread(target=_listen, args=(messages,), daemon=True).start()
    threading.Thread(target=_end_after_training, args=(settings["parent"],), daemon=True).start()
    uploader = Uploader(settings, messages)
    try:
        uploader.run()
    except Exception as error:
        uploader._failed(f"{type(error).__name__}: {error}")
        raise
    os._exit(0)  # MLflow's threads have nothing to finish


def _listen(messages: queue.Queue[dict[str, Any] | None]) -> None:
    for line in sys.stdin:
        messages.put(json.loads(line))
    messages.put(None)


def _end_after_training(parent: int) -> None:
    """However long a call to the store takes, the uploader does not outlive training by more than that."""
    while os.getppid() == parent:
        time.sleep(0.5)
    time.sleep(LAST_WORDS_S)
    os._exit(1)


def _be_modest() -> None:
    with suppress(OSError):
        os.nice(5)  # the cores belong to training and its workers


def _say(**verdict: object) -> None:
    with suppress(OSError):
        print(json.dumps(verdict), flush=True)


if __name__ == "__main__":
    main()
