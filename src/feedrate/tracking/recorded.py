"""A run that MLflow holds: what it recorded, and how something is added to it afterwards."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from feedrate.errors import UserError
from feedrate.tracking.address import read_address, run_link
from feedrate.tracking.moved import follow
from feedrate.tracking.point import points
from feedrate.tracking.store import set_environment, translated_errors


class RecordedRun:
    """One run of the store at `uri`.

    Attributes:
        run_id: MLflow's.
        name: as in the table of runs.
        status: FINISHED, FAILED, KILLED, RUNNING, SCHEDULED.
        tags, metrics: metrics with their last values.
        url: link to the run's page.

    Raises:
        UserError: the store cannot be reached, or does not hold the run.
    """

    def __init__(self, uri: str | None, run_id: str) -> None:
        if uri is None:
            raise UserError(f"run {run_id} is looked for in MLflow, but tracking.uri is null; set tracking.uri")
        address = self._address = read_address(uri)
        if address.database is not None and not address.database.is_file():
            raise UserError(f"tracking.uri={uri}: there is no file {address.database}, so no run {run_id} in it")
        set_environment()
        if address.database is not None:
            follow(address.database)
        with translated_errors(address):
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException

            self._client = MlflowClient(address.uri)
            try:
                run = self._client.get_run(run_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                raise UserError(
                    f"run_id={run_id}: there is no such run in tracking.uri={address.shown};"
                    " name its store with tracking.uri="
                ) from None
        self.run_id = run_id
        self.name = str(run.info.run_name or run_id)
        self.status = str(run.info.status)
        self.tags: Mapping[str, str] = run.data.tags
        self.metrics: Mapping[str, float] = run.data.metrics
        self.url = run_link(address.page, str(run.info.experiment_id), run_id)

    def text(self, name: str) -> str | None:
        """Content of a text artifact, None if there is none of that name."""
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

        found = points({name: value for name, value in metrics.items() if math.isfinite(value)}, step)
        with translated_errors(self._address):
            if found:
                rows = [Metric(p.name, float(f"{p.value:.6g}"), p.time_ms, p.step) for p in found]
                self._client.log_batch(self.run_id, metrics=rows)
            for file in files:
                self._client.log_artifact(self.run_id, str(file), folder)
