"""The journal of a run: one line of JSON for each recorded event, and how much of it is in the store (`UploadState`).

Training only appends to it; uploader.py sends it to MLflow.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
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
SILENT_END = "its process ended without a word (SIGKILL, or out of memory)"

PARENT_TAG = "mlflow.parentRunId"
PARENT_JOURNAL = "journal:"  # in PARENT_TAG: before the folder of the parent's journal
JOB_TAG = "feedrate.job"
RUN_ID = "{run_id}"  # in the value of a tag: replaced by MLflow's id of the run

Event = dict[str, Any]
_log = logging.getLogger(__name__)


class Journal:
    """Appends events to one file of a run folder. Never raises: a full disk costs one warning.

    Attributes:
        folder, path: the run folder and the file in it.
        existed: whether the file held events already.
    """

    def __init__(self, folder: Path, name: str = JOURNAL) -> None:
        self.folder, self.path = folder, folder / name
        self.existed = False
        self._broken = False
        self._file: IO[bytes] | None = None
        try:
            before = self.path.read_bytes() if self.path.exists() else b""
            self._file = self.path.open("ab", buffering=0)
            self.existed = bool(before)
            if before and not before.endswith(b"\n"):  # the last line of a process that was killed
                self._file.write(b"\n")
        except OSError as error:
            self._warn(error)

    def begin(self, name: str, tags: Mapping[str, str], config: TrackingConfig, run_id: str | None = None) -> None:
        """Writes the first event of the run `name`, with tags without secrets.

        Args:
            config: the group `tracking`, with a `uri`; says where the journal goes.
            run_id: of a resumed run that was recorded without a journal.
        """
        self.write(
            "begin",
            journal=uuid.uuid4().hex,
            name=without_secrets(name),
            tags=dict(tags),
            uri=without_secrets(config.uri or ""),
            artifacts=config.artifacts and without_secrets(config.artifacts),
            experiment=config.experiment,
            run_id=run_id,
        )

    def write(self, event: str, **content: Any) -> None:
        """Appends one event with the present time."""
        line = json.dumps({"event": event, "time_ms": time.time_ns() // 1_000_000, **content}, default=str)
        try:
            if self._file is not None:
                self._file.write(f"{line}\n".encode())
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._broken:
            _log.warning("%s cannot be written (%s); what is not in it cannot be recorded", self.path, error)
        self._broken = True


def events(path: Path, offset: int = 0, end: int | None = None) -> Iterator[tuple[Event, int]]:
    """Complete events from byte `offset` to byte `end`, each with the offset behind it; torn lines are left out."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        file.seek(offset)
        for line in file:
            offset += len(line)
            if not line.endswith(b"\n") or (end is not None and offset > end):
                return
            with suppress(ValueError):  # a torn line
                event = json.loads(line)
                if isinstance(event, dict) and "event" in event:
                    yield event, offset


def as_json(value: float) -> float | str:
    """A finite number as it is; others as the words `nan`, `inf`, `-inf`, since JSON has none."""
    return value if math.isfinite(value) else str(value)


@dataclass
class UploadState:
    """How much of a run's journal the store has; kept beside the journal.

    Attributes:
        store: address of the store, without secrets.
        offset, system_offset: bytes of the two files that were sent.
        run_id, experiment_id: MLflow's, empty until the run is created there.
        status: of the run in the store.
        rejected: what the store refused, in words.
        aside: files that could not be stored, as {"event", "reason"}; sent again at the end of the run and by sync.py.
        sending: bytes of the file that is being sent now.
        error: why the last attempt failed, empty if it did not.
    """

    store: str = ""
    offset: int = 0
    system_offset: int = 0
    run_id: str = ""
    experiment_id: str = ""
    status: str = ""
    rejected: list[str] = field(default_factory=list)
    aside: list[dict[str, Any]] = field(default_factory=list)
    sending: int = 0
    error: str = ""

    @classmethod
    def read(cls, folder: Path) -> UploadState:
        """The state of a run folder, a new one where there is none."""
        try:
            found = json.loads((folder / STATE).read_text(encoding="utf-8"))
            return cls(**{f.name: found[f.name] for f in fields(cls) if f.name in found})
        except (OSError, ValueError, TypeError):
            return cls()

    def write(self, folder: Path) -> None:
        atomic_write(folder / STATE, json.dumps(asdict(self), indent=2))

    @property
    def alive(self) -> bool:
        """Whether the store does not know an end of the run yet."""
        return self.status in ("", "RUNNING")

    def left(self, folder: Path) -> int:
        """Number of events that the store does not have yet."""
        system = sum(1 for _ in events(folder / SYSTEM, self.system_offset))
        return system + sum(1 for _ in events(folder / JOURNAL, self.offset))


def run_id_of(folder: Path) -> str:
    """MLflow's id of the run that a folder's journal records; empty while it is not known."""
    return UploadState.read(folder).run_id


class JournalBusy(UserError):
    """Another process sends this journal now."""


class JournalLock:
    """The right to send a journal, held by one process at a time; it ends with the process.

    Raises:
        JournalBusy: another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._descriptor = os.open(folder / JOURNAL, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._descriptor)
            raise JournalBusy(f"{folder}: another process is sending this record") from None

    def release(self) -> None:
        os.close(self._descriptor)
