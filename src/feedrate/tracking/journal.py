"""The journal of a run: what it recorded, one line of JSON for each event, and how much of it the store has by now.

Training appends to it, and nothing else is asked of training; who carries it to MLflow is in uploader.py.
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
from typing import IO, TYPE_CHECKING, Any, TypedDict

from feedrate.system.atomic_write import atomic_write
from feedrate.system.secrets import without_secrets

if TYPE_CHECKING:
    from feedrate.config import TrackingConfig

JOURNAL = "journal.jsonl"
SYSTEM = "journal.system.jsonl"  # readings of the machine, which the uploader takes
STATE = "journal.state.json"
SILENT_END = "its process ended without a word (SIGKILL, or out of memory)"
FILES = "record"  # texts and pictures that were recorded, as files of the run folder

Event = dict[str, Any]
_log = logging.getLogger(__name__)


class Journal:
    """Appends events to one file of a run folder; a line that was appended outlives the process.

    Never raises: a full disk costs a warning, since training must not end for its record.
    """

    def __init__(self, folder: Path, name: str = JOURNAL) -> None:
        self.path = folder / name
        self._broken = False
        self._file: IO[bytes] | None = None
        try:
            self.existed = self.path.exists() and self.path.stat().st_size > 0
            self._file = self.path.open("ab", buffering=0)
            if not _ends_with_newline(self.path):  # the last line of a process that was killed
                self._file.write(b"\n")
        except OSError as error:
            self.existed = False
            self._fail(error)

    def begin(self, name: str, tags: Mapping[str, str], config: TrackingConfig, run_id: str | None = None) -> None:
        """The first event: a run begins.

        Args:
            name: of the run.
            tags: without secrets.
            config: the group `tracking`, with a `uri`; says where the journal goes.
            run_id: of a run that was recorded without a journal and is gone on with.
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
        """Appends one event, stamped with the present time."""
        line = json.dumps({"event": event, "time_ms": time.time_ns() // 1_000_000, **content}, default=str)
        try:
            if self._file is not None:
                self._file.write(f"{line}\n".encode())
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        if not self._broken:
            _log.warning("%s cannot be written (%s); what is not in it cannot be recorded", self.path, error)
        self._broken = True


def events(path: Path, offset: int = 0, end: int | None = None) -> Iterator[tuple[Event, int]]:
    """Whole events from a byte offset on, each with the offset behind it; half a line at the end is left for later.

    Args:
        end: byte offset to stop at, None for the end of the file.
    """
    with suppress(FileNotFoundError), path.open("rb") as file:
        file.seek(offset)
        for line in file:
            offset += len(line)
            if not line.endswith(b"\n") or (end is not None and offset > end):
                return
            with suppress(ValueError):  # the torn line of a process that was killed while it wrote
                event = json.loads(line)
                if isinstance(event, dict) and "event" in event:
                    yield event, offset


def as_json(value: float) -> float | str:
    """A number as JSON has it; JSON has no NaN and no infinity, which become words that float() reads."""
    return value if math.isfinite(value) else str(value)


class SetAside(TypedDict):
    """A file that could not be stored, by its event."""

    event: Event
    reason: str


@dataclass
class Delivered:
    """How much of a run's journal the store has; kept beside the journal.

    Attributes:
        store: address of the store, without secrets.
        offset, system_offset: bytes of the two files that are done with.
        run_id, experiment_id: MLflow's, empty until the run is made there.
        status: of the run in the store.
        rejected: what the store refused for good, in words.
        aside: events of files that could not be stored while the store itself answered, and why; tried again at the end
            of the run and by src/sync.py.
        sending: bytes of the file that is on its way now.
        parts: counts what the store has taken, so that progress can be seen.
        error: why the last attempt failed, empty if it did not.
    """

    store: str = ""
    offset: int = 0
    system_offset: int = 0
    run_id: str = ""
    experiment_id: str = ""
    status: str = ""
    rejected: list[str] = field(default_factory=list)
    aside: list[SetAside] = field(default_factory=list)
    sending: int = 0
    parts: int = 0
    error: str = ""

    @classmethod
    def read(cls, folder: Path) -> Delivered:
        """As it was left; a new one where there is none."""
        try:
            found = json.loads((folder / STATE).read_text(encoding="utf-8"))
            return cls(**{f.name: found[f.name] for f in fields(cls) if f.name in found})
        except (OSError, ValueError, TypeError):
            return cls()

    def write(self, folder: Path) -> None:
        """Replaces the file in one step."""
        atomic_write(folder / STATE, json.dumps(asdict(self), indent=2))

    def left(self, folder: Path) -> int:
        """Number of events that the store does not have yet."""
        system = sum(1 for _ in events(folder / SYSTEM, self.system_offset))
        return system + sum(1 for _ in events(folder / JOURNAL, self.offset))


def run_id_of(folder: Path) -> str:
    """MLflow's identifier of the run that a folder's journal records; empty while it is not known."""
    return Delivered.read(folder).run_id


class SweepLock:
    """The right to carry a journal, which one process has at a time; it ends with the process."""

    def __init__(self, folder: Path) -> None:
        self._descriptor = os.open(folder / JOURNAL, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._descriptor)
            raise BlockingIOError(f"{folder}: another process is carrying this record") from None

    def release(self) -> None:
        """Gives it up."""
        os.close(self._descriptor)


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
