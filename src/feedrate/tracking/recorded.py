"""A run that MLflow holds: what it recorded, and how something is added to it afterwards.

A run in an SQLite file is read from its tables, since importing MLflow takes more than two seconds.
"""

from __future__ import annotations

import functools
import math
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from feedrate.errors import UserError
from feedrate.tracking.address import read_address, run_link
from feedrate.tracking.moved import follow
from feedrate.tracking.store import StoreRefusal, set_environment, translated_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient


class RecordedRun:
    """One run of the store at `uri`, with the last values of its metrics and the link to its page.

    Raises:
        UserError: the store cannot be reached, or does not hold the run.
    """

    def __init__(self, uri: str | None, run_id: str) -> None:
        if uri is None:
            raise UserError(f"run {run_id} is looked for in MLflow, but tracking.uri is null; set tracking.uri")
        address = self._address = read_address(uri)
        missing = UserError(f"run_id={run_id}: there is no such run in tracking.uri={address.shown}; set tracking.uri")
        if address.database is not None:
            if not address.database.is_file():
                raise missing
            follow(address.database)
        self.run_id = run_id
        try:
            experiment_id, name, self.status, self._artifacts, self.tags, self.metrics = self._read()
        except StoreRefusal:
            raise missing from None
        self.name = str(name or run_id)
        self.url = run_link(address.page, str(experiment_id), run_id)

    def _read(self) -> tuple[Any, Any, str, str, Mapping[str, str], Mapping[str, float]]:
        """Experiment, name, status, URI of the artifacts, tags, last values of metrics."""
        if self._address.database is not None:
            with suppress(sqlite3.Error):  # what is wrong with the file MLflow says below
                if (found := _read_tables(self._address.database, self.run_id)) is not None:
                    return found
        with translated_errors(self._address):
            run = self._client.get_run(self.run_id)
        info = run.info
        return info.experiment_id, info.run_name, info.status, info.artifact_uri, run.data.tags, run.data.metrics

    @functools.cached_property
    def _client(self) -> MlflowClient:
        set_environment()
        from mlflow import MlflowClient

        return MlflowClient(self._address.uri)

    def text(self, name: str) -> str | None:
        """Content of a text artifact, None if there is none of that name."""
        place = urlsplit(self._artifacts)
        if place.scheme == "file" and (local := Path(unquote(place.path), name)).is_file():
            return local.read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory(prefix="feedrate-") as folder:
            path = self.download(name, Path(folder))
            return path.read_text(encoding="utf-8") if path else None

    def download(self, name: str, folder: Path) -> Path | None:
        """Copies an artifact to `folder`/`name`; None if there is none of that name."""
        parent = name.rpartition("/")[0]
        with translated_errors(self._address):
            if name not in {item.path for item in self._client.list_artifacts(self.run_id, parent or None)}:
                return None
            folder.mkdir(parents=True, exist_ok=True)
            return Path(self._client.download_artifacts(self.run_id, name, str(folder)))

    def add(self, metrics: Mapping[str, float], step: int, files: Iterable[Path], folder: str) -> None:
        """Records the finite metrics of one step, and copies of files under `folder`."""
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        found = [Metric(name, float(f"{x:.6g}"), now, step) for name, x in metrics.items() if math.isfinite(x)]
        with translated_errors(self._address):
            self._client.log_batch(self.run_id, metrics=found)
            for file in files:
                self._client.log_artifact(self.run_id, str(file), folder)


def _read_tables(database: Path, run_id: str) -> tuple[Any, Any, str, str, dict[str, str], dict[str, float]] | None:
    """As `_read`, from the tables of MLflow's SQLite file; None where it has no such run."""
    file = f"file:{quote(str(database))}?mode=ro"
    with closing(sqlite3.connect(file, uri=True)) as store:
        about = "SELECT experiment_id, name, status, artifact_uri FROM runs WHERE run_uuid = ?"
        if (found := store.execute(about, (run_id,)).fetchone()) is None:
            return None
        tags = store.execute("SELECT key, value FROM tags WHERE run_uuid = ?", (run_id,))
        metrics = store.execute("SELECT key, value, is_nan FROM latest_metrics WHERE run_uuid = ?", (run_id,))
        return *found, dict(tags), {key: math.nan if is_nan else value for key, value, is_nan in metrics}
