"""A run that MLflow already holds: what it recorded, and how something is added to it afterwards.

Runs that are going on are recorded by journal_tracker.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from feedrate.errors import UserError
from feedrate.tracking.address import Address, read_address, run_link
from feedrate.tracking.moved import follow
from feedrate.tracking.store import set_environment, translated_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


class RecordedRun:
    """One run of the store at `uri`.

    Attributes:
        run_id: MLflow's.
        name: as the table of runs shows it.
        status: FINISHED, FAILED, KILLED, RUNNING, SCHEDULED.
        tags, metrics: metrics with their last values.

    Raises:
        UserError: the store cannot be reached, or does not hold the run.
    """

    def __init__(self, uri: str | None, run_id: str) -> None:
        if uri is None:
            raise UserError(f"run {run_id} is looked for in MLflow, but tracking.uri is null; set tracking.uri")
        self._address: Address = read_address(uri)
        if self._address.database is not None and not self._address.database.is_file():
            raise UserError(f"tracking.uri={uri}: there is no file {self._address.database}, so no run {run_id} in it")
        set_environment()
        if self._address.database is not None:
            follow(self._address.database)
        with translated_errors(self._address):
            self._client, self._run = _open(self._address, run_id)
        self.run_id = run_id
        self.name = str(self._run.info.run_name or run_id)
        self.status = str(self._run.info.status)
        self.tags: Mapping[str, str] = self._run.data.tags
        self.metrics: Mapping[str, float] = self._run.data.metrics

    @property
    def url(self) -> str:
        """Link to the run's page."""
        return run_link(self._address.page, str(self._run.info.experiment_id), self.run_id)

    def text(self, name: str) -> str | None:
        """Content of a text artifact, None if the run has none of that name."""
        import tempfile

        with tempfile.TemporaryDirectory(prefix="feedrate-") as folder:
            path = self.download(name, Path(folder))
            return path.read_text(encoding="utf-8") if path else None

    def download(self, name: str, folder: Path) -> Path | None:
        """Copies an artifact to `folder`/`name`; None if the run has none of that name."""
        parent = name.rpartition("/")[0]
        with translated_errors(self._address):
            if name not in {item.path for item in self._client.list_artifacts(self.run_id, parent or None)}:
                return None
            folder.mkdir(parents=True, exist_ok=True)
            return Path(self._client.download_artifacts(self.run_id, name, str(folder)))

    def add(self, metrics: Mapping[str, float], step: int, files: Iterable[Path], folder: str) -> None:
        """Records metrics of one step (those that are finite), and copies of files under `folder`."""
        import time

        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        finite = [Metric(n, float(f"{v:.6g}"), now, step) for n, v in metrics.items() if math.isfinite(v)]
        with translated_errors(self._address):
            if finite:
                self._client.log_batch(self.run_id, metrics=finite)
            for file in files:
                self._client.log_artifact(self.run_id, str(file), folder)


def _open(address: Address, run_id: str) -> tuple[MlflowClient, Run]:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(address.uri)
    try:
        return client, client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise UserError(
            f"run_id={run_id}: there is no such run in tracking.uri={address.shown}; name its store with tracking.uri="
        ) from None
