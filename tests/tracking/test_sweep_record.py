"""The parent run of a sweep in a real store, through a real uploader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from feedrate.config import TrackingConfig
from feedrate.errors import UserError
from feedrate.tracking.journal import SILENT_END, Journal
from feedrate.tracking.sweep import SweepRun, picture


def settings_of(uri: Path | str) -> TrackingConfig:
    return TrackingConfig(
        uri=str(uri), experiment="feedrate", artifacts=None, log_model=False, system_metrics=True, run_name=None
    )


def open_sweep(settings: TrackingConfig, folder: Path) -> SweepRun:
    swept, tags = {"seed": "0, 1"}, {"feedrate.sweep_id": "a"}
    return SweepRun(settings, "sweep seed", folder, swept, tags, owned=lambda path: path.name == "alive")


@pytest.fixture
def opened(database, tmp_path, monkeypatch):
    """Opens the same sweep in a real store, through a real uploader."""
    monkeypatch.setattr("feedrate.tracking.uploader.HURRY_S", 100.0)
    settings = settings_of(database)
    (tmp_path / "sweep").mkdir()
    return lambda: open_sweep(settings, tmp_path / "sweep")


def job(folder: Path, parent: str, end: str = "") -> None:
    """The journal of a job whose process is gone."""
    folder.mkdir()
    journal = Journal(folder)
    journal.begin(folder.name, {"mlflow.parentRunId": parent}, settings_of("unused"))
    if end:
        journal.write("end", status=end, error="its own words")


def children(read, parent_id: str) -> dict[str, Any]:
    experiment = read.get_experiment_by_name("feedrate").experiment_id
    found = read.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent_id}'")
    return {run.info.run_name: (run.info.status, run.data.tags.get("feedrate.error", "")) for run in found}


@pytest.mark.slow
def test_a_parent_run_is_gone_on_with_and_its_dead_children_are_marked(opened, tmp_path, read):
    first = opened()
    for name, end in (("alive", ""), ("dead", ""), ("done", "FINISHED")):
        job(tmp_path / "sweep" / name, first.reference, end)
    first.tracker.end("KILLED", "the sweep was interrupted")
    assert read.get_run(first.tracker.run_id).data.tags["feedrate.error"] == "the sweep was interrupted"
    again = opened()
    again.tracker.end("FINISHED")
    assert again.tracker.run_id == first.tracker.run_id
    assert read.get_run(again.tracker.run_id).info.status == "FINISHED"
    assert "feedrate.error" not in read.get_run(again.tracker.run_id).data.tags
    found = children(read, again.tracker.run_id)
    assert found == {"dead": ("KILLED", SILENT_END), "done": ("FINISHED", "its own words")}


@pytest.mark.slow
def test_a_parent_run_that_was_deleted_begins_anew(opened, read):
    first = opened()
    first.tracker.end("KILLED")
    deleted = first.tracker.run_id
    read.delete_run(deleted)
    again = opened()
    again.tracker.end("FINISHED")
    assert again.tracker.run_id not in (None, deleted)
    assert read.get_run(again.tracker.run_id).data.params == {"seed": "0, 1"}


@pytest.mark.slow
def test_a_job_that_did_not_end_well_has_a_run_with_its_error(opened, tmp_path, read):
    sweep = opened()
    tags = {"feedrate.job": "3", "feedrate.command": "python src/train.py"}
    job(tmp_path / "sweep/0", sweep.reference)
    job(tmp_path / "sweep/1", sweep.reference, end="KILLED")
    for name in ("0", "1", "3"):  # the last never came to its own run
        sweep.mark(tmp_path / "sweep" / name, "FAILED", "no such folder at http://me:secret@host", tags)
    sweep.note("best: ![a.png]" + picture("a.png"))
    sweep.tracker.end("FAILED", "3 of 3 jobs did not finish")
    said = "no such folder at http://***@host"
    assert children(read, sweep.tracker.run_id) == {
        "0": ("FAILED", said), "1": ("KILLED", "its own words"), "job 3": ("FAILED", said),
    }  # fmt: skip
    assert f"run_uuid={sweep.tracker.run_id}" in read.get_run(sweep.tracker.run_id).data.tags["mlflow.note.content"]


def test_a_store_that_is_no_store_is_answered_before_any_job(tmp_path):
    (tmp_path / "no.db").write_text("this is no database, and longer than its header of one hundred bytes " * 3)
    with pytest.raises(UserError, match="cannot be used"):
        open_sweep(settings_of(tmp_path / "no.db"), tmp_path)
