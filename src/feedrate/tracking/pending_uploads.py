"""Records that are still in run folders: which there are, and how one is sent afterwards (src/sync.py).

While a run goes on its uploader does that (uploader.py); whether it goes on is for the caller to know.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from feedrate.errors import UserError
from feedrate.system.secrets import MASK, learn
from feedrate.tracking.address import Address, read_address
from feedrate.tracking.journal import JOURNAL, Delivered, events
from feedrate.tracking.store import open_store


@dataclass(frozen=True)
class Destination:
    """Where a journal is to go."""

    uri: str
    artifacts: str | None
    experiment: str


def journals(paths: Iterable[Path]) -> list[Path]:
    """Folders with a journal: those that are named, and those up to two levels below them; a sweep before its jobs."""
    found = {
        journal.parent for path in paths for pattern in ("", "*/", "*/*/") for journal in path.glob(pattern + JOURNAL)
    }
    return sorted(found)


def waiting(folder: Path) -> int:
    """Number of records that the store lacks; at least one for a run that the store still thinks alive."""
    state = Delivered.read(folder)
    return state.left(folder) + len(state.aside) or int(state.status in ("", "RUNNING"))


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


class Sender:
    """Sends journals to the stores that they name, each of which is opened once."""

    def __init__(self) -> None:
        self._stores: dict[Destination, tuple[Address, object, str] | UserError] = {}

    def send(self, folder: Path, goal: Destination) -> Delivered:
        """Everything that is left of a run whose process has ended; returns how far it came.

        Raises:
            UserError: it could not all be sent.
        """
        from feedrate.tracking.mlflow_writer import MLflowWriter

        address, client, experiment_id = self._open(goal)
        try:
            delivery = MLflowWriter(folder, address, client, experiment_id)  # type: ignore[arg-type]
        except BlockingIOError as error:
            raise UserError(str(error)) from None
        try:
            delivery.deliver()
            delivery.close_silent_run()
        finally:
            delivery.close()
        return delivery.state

    def _open(self, goal: Destination) -> tuple[Address, object, str]:
        if goal not in self._stores:
            learn({"uri": goal.uri})
            try:
                address = read_address(goal.uri, goal.artifacts)
                self._stores[goal] = (address, *open_store(address, goal.experiment))
            except UserError as error:
                self._stores[goal] = error
        found = self._stores[goal]
        if isinstance(found, UserError):
            raise found
        return found


def _configured(folder: Path) -> dict[str, str | None]:
    """The group `tracking` of the run, its `${oc.env:NAME}` read again; empty where that is not possible."""
    path = folder / ".hydra" / "config.yaml"
    if not path.is_file():
        return {}
    try:
        config = OmegaConf.load(path)
        node = OmegaConf.to_container(config.tracking, resolve=True)
    except (OmegaConfBaseException, AttributeError, OSError):
        return {}
    keys = ("uri", "artifacts", "experiment")
    return {key: node[key] for key in keys if node.get(key)} if isinstance(node, dict) else {}
