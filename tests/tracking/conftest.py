"""Real SQLite stores, quickly: MLflow's migrations run once per session, and each test gets a copy."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from feedrate.tracking import Tracker, open_tracker
from feedrate.tracking.address import read_address
from feedrate.tracking.store import open_store

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


@pytest.fixture(scope="session")
def template_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    database = tmp_path_factory.mktemp("template") / "mlflow.db"
    open_store(read_address(str(database)), "made-with-the-template")
    return database


@pytest.fixture
def database(template_database: Path, tmp_path: Path) -> Path:
    """A store of this test's own, in a folder whose name has a space."""
    folder = tmp_path / "my outputs"
    folder.mkdir()
    copy = folder / "mlflow.db"
    with closing(sqlite3.connect(template_database)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    return copy


@pytest.fixture
def track(database: Path, tmp_path: Path) -> Iterator[OpenTracker]:
    """Opens trackers on `database`; keyword arguments change the settings. Those still open are ended."""
    opened: list[Tracker] = []

    def open_one(**changes: Any) -> Tracker:
        settings = Settings(**({"uri": str(database)} | changes))
        opened.append(open_tracker(settings, run_name="mlp-digits-w2-b64", run_folder=tmp_path / "run"))
        return opened[-1]

    yield open_one
    for tracker in opened:
        tracker.end("KILLED")


@pytest.fixture
def read(database: Path) -> Any:
    """MLflow's own client on `database`, to read back what was recorded."""
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{database}")
