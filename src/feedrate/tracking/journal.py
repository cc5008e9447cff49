"""The journal of a run: one line of JSON for each recorded event, and how much of it is in the store (`UploadState`).

Training only appends to it; uploader.py sends it to MLflow.
"""

from __future__ import annotations

import fcntl
import json
import logging
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from feedrate.errors import UserError
from feedrate.system.files import atomic_write
from feedrate.system.secrets import without_secrets

if TYPE_CHECKING:
    from feedrate.config import TrackingConfig

JOURNAL = "journal.jsonl"
SYSTEM = "journal.system.jsonl"  # readings of the machine, written by the uploader
STATE = "journal.state.json"
FILES = "record"  # folder of recorded texts and pictures
SILENT_END = "its process ended without recording its status (SIGKILL, or out of memory)"

PARENT_TAG = "mlflow.parentRunId"
PARENT_JOURNAL = "journal:"  # in PARENT_TAG: before the folder of the parent's journal
JOB_TAG = "feedrate.job"
RUN_ID = "{run_id}"  # in the value of a tag: replaced by MLflow's id of the run

Event = dict[str, Any]
_log = logging.getLogger(__name__)


class Journal:
    """Appends events to one file of a run folder. Never raises: a full disk is one warning."""

    def __init__(self, folder: Path, name: str = JOURNAL) -> None:
        self.folder, self.path = folder, folder / name
        self._warned = False
        self.existed = self.path.exists() and self.path.stat().st_size > 0  # with events of an earlier process
        if self.existed:
            self._append("\n")  # ends the last line of a process that was killed

    def begin(self, name: str, tags: Mapping[str, str], config: TrackingConfig) -> None:
        """Writes the first event of the run `name`; the group `tracking` says where the journal goes."""
        self.write(
            "begin",
            journal=uuid.uuid4().hex,
            name=without_secrets(name),
            tags=dict(tags),
            uri=without_secrets(config.uri or ""),
            artifacts=config.artifacts and without_secrets(config.artifacts),
            experiment=config.experiment,
        )

    def write(self, event: str, **content: Any) -> None:
        """Appends one event, with the present time unless `time_ms` is given."""
        line = {"event": event, "time_ms": time.time_ns() // 1_000_000, **content}
        self._append(f"{json.dumps(line, default=str)}\n")

    def _append(self, text: str) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            if not self._warned:
                _log.warning("%s cannot be written (%s); what is not in it cannot be recorded", self.path, error)
            self._warned = True


def events(path: Path, offset: int = 0) -> Iterator[tuple[Event, int]]:
    """Complete events from byte `offset`, each with the offset behind it; torn lines are left out."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        file.seek(offset)
        for line in file:
            offset += len(line)
            if line.endswith(b"\n"):
                with suppress(ValueError):  # a torn line
                    yield json.loads(line), offset


@dataclass
class UploadState:
    """How much of a run's journal the store has; kept beside the journal."""

    store: str = ""  # its address, without secrets
    offsets: dict[str, int] = field(default_factory=lambda: {JOURNAL: 0, SYSTEM: 0})  # bytes that were sent
    run_id: str = ""  # MLflow's, empty until the run is created there; so is the experiment's
    experiment_id: str = ""
    status: str = ""  # of the run in the store
    rejected: list[str] = field(default_factory=list)  # what the store refused, in words
    aside: list[dict[str, Any]] = field(default_factory=list)  # files to send again, as {"event", "reason"}
    error: str = ""  # why the last attempt failed, empty if it did not

    @classmethod
    def read(cls, folder: Path) -> UploadState:
        """The state of a run folder, a new one where there is none."""
        try:
            return cls(**json.loads((folder / STATE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return cls()

    def write(self, folder: Path) -> None:
        """Replaces the state of a run folder atomically."""
        atomic_write(folder / STATE, json.dumps(asdict(self), indent=2))

    @property
    def alive(self) -> bool:
        """Whether the store does not know an end of the run yet."""
        return self.status in ("", "RUNNING")

    def left(self, folder: Path) -> int:
        """Number of events that the store does not have yet."""
        return sum(1 for name, offset in self.offsets.items() for _ in events(folder / name, offset))


def run_id_of(folder: Path) -> str:
    """MLflow's id of the run that a folder's journal records; empty while it is not known."""
    return UploadState.read(folder).run_id


class JournalBusy(UserError):
    """Another process sends this journal now."""


def lock_journal(folder: Path, wait_s: float = 0.0) -> IO[bytes]:
    """The right to send a journal, held by one process until the file is closed; JournalBusy after `wait_s`."""
    file, deadline = (folder / JOURNAL).open("ab"), time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except OSError:
            if time.monotonic() >= deadline:
                file.close()
                raise JournalBusy(f"{folder}: another process is sending this record") from None
            time.sleep(0.05)
