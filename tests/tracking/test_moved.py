"""A store that was moved or copied keeps its artifacts, and gets new ones where it lies now."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from feedrate.tracking.address import read_address
from feedrate.tracking.recorded import RecordedRun
from feedrate.tracking.store import open_store


def record(outputs: Path, text: str, artifacts: str | None = None, experiment: str = "feedrate") -> str:
    """A run with an artifact, in the store of that folder; returns its id."""
    client, experiment_id = open_store(read_address(f"{outputs}/mlflow.db", artifacts), experiment)
    run_id: str = client.create_run(experiment_id).info.run_id
    client.log_text(run_id, text, "a.txt")
    return run_id


def files(folder: Path) -> set[str]:
    return {path.read_text() for path in folder.rglob("a.txt")}


@pytest.fixture
def outputs(make_store: Callable[[Path], Path], tmp_path: Path) -> Path:
    folder = tmp_path / "My%20 repo?#1/outputs"
    folder.mkdir(parents=True)
    make_store(folder)
    return folder


@pytest.mark.parametrize("how", [shutil.move, shutil.copytree])
def test_artifacts_of_a_store_that_was_moved_or_copied_lie_beside_it(
    outputs: Path, tmp_path: Path, how: Callable[[Path, Path], Any]
) -> None:
    first = record(outputs, "first")
    how(outputs.parent, tmp_path / "other")
    there = tmp_path / "other/outputs"

    assert RecordedRun(f"{there}/mlflow.db", first).text("a.txt") == "first"
    second = record(there, "second")
    assert RecordedRun(f"{there}/mlflow.db", second).text("a.txt") == "second"
    assert files(there / "artifacts") == {"first", "second"}
    assert files(outputs) == ({"first"} if how is shutil.copytree else set())

    if how is shutil.copytree:  # the original goes on as before
        record(outputs, "third")
        assert files(outputs / "artifacts") == {"first", "third"}
        assert files(there / "artifacts") == {"first", "second"}


def test_artifacts_that_lie_elsewhere_stay_there(outputs: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "disk/artifacts"
    first = record(outputs, "first", str(elsewhere), experiment="on a disk")
    shutil.move(outputs.parent, tmp_path / "other")
    there = tmp_path / "other/outputs"
    record(there, "second", experiment="on a disk")
    assert RecordedRun(f"{there}/mlflow.db", first).text("a.txt") == "first"
    assert files(elsewhere) == {"first", "second"}


def test_a_file_of_runs_alone_leaves_the_artifacts_that_did_not_come_along(outputs: Path, tmp_path: Path) -> None:
    first = record(outputs, "first")
    there = tmp_path / "alone"
    there.mkdir()
    with (
        closing(sqlite3.connect(outputs / "mlflow.db")) as source,
        closing(sqlite3.connect(there / "mlflow.db")) as target,
    ):
        source.backup(target)
    assert RecordedRun(f"{there}/mlflow.db", first).text("a.txt") == "first"
    record(there, "second")
    assert files(there) == {"second"}
    assert files(outputs) == {"first"}
