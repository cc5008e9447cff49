"""Uploads journals to one tracking store, and finds those that are not uploaded yet.

While a run goes on this happens in a process of its own (uploader_process.py), afterwards in src/sync.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from feedrate.errors import UserError
from feedrate.system.secrets import MASK, learn
from feedrate.tracking.address import read_address
from feedrate.tracking.journal import JOURNAL, UploadState, events
from feedrate.tracking.mlflow_writer import MLflowWriter
from feedrate.tracking.store import open_store

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class Destination:
    """Where a journal goes: the settings of the group `tracking` that name a store."""

    uri: str
    artifacts: str | None
    experiment: str


class Uploader:
    """Uploads journals to a store, which is opened when it is first needed.

    Raises:
        UserError: the address cannot be a store.
    """

    def __init__(self, destination: Destination) -> None:
        learn({"uri": destination.uri})
        self._address = read_address(destination.uri, destination.artifacts)
        self._experiment = destination.experiment
        self._store: tuple[MlflowClient, str] | None = None

    def open(self) -> None:
        """Opens the store.

        Raises:
            StoreFault: it is away.
            UserError: it cannot be used.
        """
        if self._store is None:
            self._store = open_store(self._address, self._experiment)

    def writer(self, folder: Path) -> MLflowWriter:
        """The writer of a run folder's journal; raises as `open` does, and JournalBusy."""
        self.open()
        assert self._store is not None
        return MLflowWriter(folder, self._address, *self._store)

    def upload_dead_run(self, folder: Path) -> UploadState:
        """Uploads what is left of a run whose process has ended, and marks it as KILLED if it has no end event."""
        writer = self.writer(folder)
        try:
            writer.send()
            writer.close_silent_run()
        finally:
            writer.close()
        return writer.state

    def holds(self, folder: Path) -> bool:
        """Whether the run of a folder was uploaded to this store, or to none yet."""
        return UploadState.read(folder).store in ("", self._address.name, self._address.shown)


def journals(paths: Iterable[Path]) -> list[Path]:
    """Folders with a journal at or up to two levels below the paths; a sweep comes before its jobs."""
    return sorted(
        {found.parent for path in paths for level in ("", "*/", "*/*/") for found in path.glob(level + JOURNAL)}
    )


def pending(folder: Path) -> int:
    """Number of records that the store lacks; at least one for a run that the store takes for alive."""
    state = UploadState.read(folder)
    return state.left(folder) + len(state.aside) or int(state.alive)


def destination(folder: Path, uri: str | None) -> Destination:
    """Where the run was to be recorded; `uri` names another store.

    Raises:
        UserError: the address holds a password, which is not kept.
    """
    first = next(events(folder / JOURNAL), None)
    begin = first[0] if first is not None else {}
    node = {key: begin.get(key) for key in ("uri", "artifacts", "experiment")} | _configured(folder)
    experiment = str(node.get("experiment") or "feedrate")
    if uri is not None:
        return Destination(uri, None, experiment)
    if not node.get("uri"):
        raise UserError(f"{folder}: its journal does not say where it goes; give tracking.uri=")
    if f"{MASK}@" in str(node["uri"]):
        raise UserError(f"{folder}: the password of {node['uri']} is not kept; give the address with tracking.uri=")
    return Destination(str(node["uri"]), node.get("artifacts"), experiment)


def _configured(folder: Path) -> dict[str, str | None]:
    """The group `tracking` of the run's configuration, its `${oc.env:NAME}` resolved; empty if that is impossible."""
    try:
        config = OmegaConf.load(folder / ".hydra/config.yaml")
        node = OmegaConf.to_container(config.tracking, resolve=True)
    except (OmegaConfBaseException, AttributeError, OSError):
        return {}
    keys = ("uri", "artifacts", "experiment")
    return {key: node[key] for key in keys if node.get(key)} if isinstance(node, dict) else {}
