"""A run that MLflow holds: what it recorded, and how something is added to it afterwards."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from feedrate.errors import UserError
from feedrate.tracking.address import read_address, run_link
from feedrate.tracking.moved import follow
from feedrate.tracking.store import StoreRefusal, set_environment, translated_errors


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
        set_environment()
        from mlflow import MlflowClient

        try:
            with translated_errors(address):
                self._client = MlflowClient(address.uri)
                run = self._client.get_run(run_id)
        except StoreRefusal:
            raise missing from None
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

        now = time.time_ns() // 1_000_000
        found = [Metric(name, float(f"{x:.6g}"), now, step) for name, x in metrics.items() if math.isfinite(x)]
        with translated_errors(self._address):
            self._client.log_batch(self.run_id, metrics=found)
            for file in files:
                self._client.log_artifact(self.run_id, str(file), folder)
