"""Real SQLite stores, and trackers on them.

Journals are uploaded in this process, when something is read back; the uploader's process is tested in
end_to_end/test_tracking_faults.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from feedrate.tracking.mlflow_writer import MLflowWriter
from feedrate.tracking.system_metrics import SystemReadings
from feedrate.tracking.tracker import Tracker, open_tracker
from feedrate.tracking.uploader import Uploader

OpenTracker = Callable[..., Tracker]


@dataclass
class Settings:
    """The configuration group `tracking`, as the trackers read it."""

    uri: str | None
    experiment: str = "feedrate"
    artifacts: str | None = None
    log_model: bool = False
    system_metrics: bool = False
    run_name: str | None = None


@pytest.fixture
def database(make_store: Callable[[Path], Path], tmp_path: Path) -> Path:
    """A store of this test's own, in a folder whose name has a space."""
    folder = tmp_path / "my outputs"
    folder.mkdir()
    return make_store(folder)


class Here:
    """Stands in for the uploader's process: uploads in this process, when something is read back."""

    def __init__(self, *destination: Any) -> None:
        self._uploader = Uploader(*destination)
        self._writer: MLflowWriter | None = None
        self._system: SystemReadings | None = None

    def opened(self) -> str:
        return ""

    def upload(self, folder: Path, system_metrics: bool) -> None:
        self._writer = self._uploader.writer(folder)
        self._system = SystemReadings(folder, os.getpid()) if system_metrics else None
        self.send()

    def send(self) -> None:
        if self._writer is not None:
            self._writer.send()

    def finish(self, folder: Path, *, hurry: bool) -> str:
        assert self._writer is not None
        if self._system is not None:
            self._system.take(last=True)
        self._writer.send()
        self._writer.close()
        self._writer = None
        return ""


@pytest.fixture
def uploaders() -> list[Here]:
    return []


@pytest.fixture
def track(database: Path, tmp_path: Path, uploaders: list[Here]) -> Iterator[OpenTracker]:
    """Opens trackers on `database`; keyword arguments change the settings. Those still open are ended."""
    opened: list[Tracker] = []

    def open_one(folder: Path | None = None, **changes: Any) -> Tracker:
        settings = Settings(**({"uri": str(database)} | changes))
        uploaders.append(Here(settings.uri, settings.artifacts, settings.experiment))
        run_folder = folder or tmp_path / (f"run{len(opened)}" if opened else "run")
        opened.append(
            open_tracker(settings, run_name="mlp-digits-w2-b64", run_folder=run_folder, uploader=uploaders[-1])
        )
        return opened[-1]

    yield open_one
    for tracker in opened:
        tracker.end("KILLED")


class Reader:
    """MLflow's own client, which sees what was recorded until now."""

    def __init__(self, uri: str, uploaders: list[Here]) -> None:
        from mlflow import MlflowClient

        self._client, self._uploaders = MlflowClient(uri), uploaders

    def __getattr__(self, name: str) -> Any:
        for uploader in self._uploaders:
            uploader.send()
        return getattr(self._client, name)


@pytest.fixture
def read(database: Path, uploaders: list[Here]) -> Reader:
    """To read back what was recorded in `database`."""
    return Reader(f"sqlite:///{database}", uploaders)
