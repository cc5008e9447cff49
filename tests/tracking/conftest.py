"""Real SQLite stores, and trackers on them.

Journals are carried to them in this process, when something is read back; the process that does it in training is
tested in end_to_end/test_tracking_faults.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from feedrate.tracking.address import read_address
from feedrate.tracking.journal_tracker import JournalTracker
from feedrate.tracking.mlflow_writer import MLflowWriter
from feedrate.tracking.store import open_store
from feedrate.tracking.system import SystemReadings

OpenTracker = Callable[..., JournalTracker]


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
    """Carries a journal when it is asked to, in this process."""

    def __init__(self, uri: str, experiment: str, artifacts: str | None) -> None:
        self._address = read_address(uri, artifacts)
        self._store = open_store(self._address, experiment)
        self._delivery: MLflowWriter | None = None
        self._system: SystemReadings | None = None

    def opened(self) -> str:
        return ""

    def take(self, folder: Path, system_metrics: bool) -> None:
        self._delivery = MLflowWriter(folder, self._address, *self._store)
        self._system = SystemReadings(folder, os.getpid()) if system_metrics else None
        self.carry()

    def close_dead(self, folder: Path) -> None:
        dead = MLflowWriter(folder, self._address, *self._store)
        dead.deliver()
        dead.close_silent_run()
        dead.close()

    def carry(self) -> None:
        if self._delivery is not None:
            self._delivery.deliver()

    def finish(self, patience_s: float) -> bool:
        if self._system is not None:
            self._system.stop()
        assert self._delivery is not None
        self._delivery.deliver()
        self._delivery.close()
        done, self._delivery = self._delivery.finished, None
        return done


@pytest.fixture
def carriers() -> list[Here]:
    return []


@pytest.fixture
def track(database: Path, tmp_path: Path, carriers: list[Here]) -> Iterator[OpenTracker]:
    """Opens trackers on `database`; keyword arguments change the settings. Those still open are ended."""
    opened: list[JournalTracker] = []

    def open_one(folder: Path | None = None, **changes: Any) -> JournalTracker:
        settings = Settings(**({"uri": str(database)} | changes))
        carriers.append(Here(settings.uri or "", settings.experiment, settings.artifacts))
        name = settings.run_name or "mlp-digits-w2-b64"
        run_folder = folder or tmp_path / (f"run{len(opened)}" if opened else "run")
        opened.append(JournalTracker(settings, carriers[-1], run_name=name, run_folder=run_folder))
        return opened[-1]

    yield open_one
    for tracker in opened:
        tracker.end("KILLED")


class Reader:
    """MLflow's own client, which sees what was recorded until now."""

    def __init__(self, uri: str, carriers: list[Here]) -> None:
        from mlflow import MlflowClient

        self._client, self._carriers = MlflowClient(uri), carriers

    def __getattr__(self, name: str) -> Any:
        for carrier in self._carriers:
            carrier.carry()
        return getattr(self._client, name)


@pytest.fixture
def read(database: Path, carriers: list[Here]) -> Reader:
    """To read back what was recorded in `database`."""
    return Reader(f"sqlite:///{database}", carriers)
