"""Which runs there are, and what the next command makes of one that was killed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import psutil

from feedrate.runs.provenance import changes, result_id
from feedrate.runs.run_folder import read_summary
from feedrate.runs.saved import find_run, folder_of_id, mark_dead_runs

NOW = {"seed": 0, "dataset": {"root": "a"}, "loader": {"num_workers": 2}, "model": {}, "trainer": {"max_epochs": 3}}
DEAD = json.dumps({"pid": 2**22 + 1, "started": 1.0})


def run(folder: Path, lock: str | None = None, **summary: object) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints/last.pt").touch()
    if lock is not None:
        (folder / "lock").write_text(lock)
    (folder / "summary.json").write_text(json.dumps({"result_id": result_id(NOW), **summary}))
    return folder


def test_a_run_whose_process_is_gone_is_marked_and_what_it_left_half_written_is_removed(tmp_path):
    dead = run(tmp_path / "dead", DEAD, status="RUNNING", started="1", run_id="a" * 32)
    (dead / "checkpoints/.last.pt.99").touch()
    (dead / ".summary.json").touch()
    given_up = run(tmp_path / "given_up", DEAD, status="KILLED", started="1", error="while it hung")
    mine = json.dumps({"pid": os.getpid(), "started": psutil.Process().create_time()})
    alive = run(tmp_path / "alive", mine, status="RUNNING", started="1")
    newborn = tmp_path / "newborn"  # killed before it could say anything
    newborn.mkdir()
    (newborn / "lock").write_text(DEAD)

    assert mark_dead_runs(tmp_path) == [dead, given_up]
    assert read_summary(dead)["status"] == "KILLED"
    assert read_summary(given_up)["error"] == "while it hung"
    assert read_summary(alive)["status"] == "RUNNING"
    assert sorted(path.name for path in dead.rglob("*")) == ["checkpoints", "last.pt", "summary.json"]
    assert not list(newborn.iterdir())
    assert mark_dead_runs(tmp_path) == []


def test_a_sweep_whose_process_is_gone_is_marked_too_and_is_no_run_to_go_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr("feedrate.runs.saved.ROOT", tmp_path)
    sweep = run(tmp_path / "outputs/sweeps/one", DEAD, status="RUNNING", started="1")
    assert mark_dead_runs(tmp_path / "outputs/runs") == [sweep]
    assert read_summary(sweep)["status"] == "KILLED"
    assert find_run("auto", NOW, tmp_path / "outputs/runs") is None


def test_the_run_to_go_on_with_is_the_newest_that_can_be(tmp_path):
    run(tmp_path / "finished", status="FINISHED", started="5")
    older = run(tmp_path / "older", status="KILLED", started="1", run_id="older")
    newer = run(tmp_path / "newer", status="FAILED", started="2")
    (run(tmp_path / "unsaved", status="KILLED", started="3") / "checkpoints/last.pt").unlink()
    run(tmp_path / "other", status="KILLED", started="4", result_id="other")
    mine = json.dumps({"pid": os.getpid(), "started": psutil.Process().create_time()})
    run(tmp_path / "alive", mine, status="RUNNING", started="6")
    assert find_run("auto", NOW, tmp_path) == newer
    assert find_run("auto", {**NOW, "seed": 1}, tmp_path) is None
    assert folder_of_id("older", tmp_path) == older


def test_auto_says_that_it_begins_a_new_run(tmp_path, caplog):
    with caplog.at_level("INFO", logger="feedrate"):
        assert find_run("auto", NOW, tmp_path) is None
    assert "trainer.resume=auto: no unfinished run of this configuration; a new run begins" in caplog.text


def test_what_has_changed_is_said_by_key_and_not_at_length():
    assert changes({"a": 1, "b": 2}, {"b": 3, "c": 4}) == "b was 2, is 3; c was not there, is 4; a was 1, is not there"
    assert changes(dict.fromkeys("abcde", 1), dict.fromkeys("abcde", 2)).endswith("c was 1, is 2, and 2 more")
    assert changes({"a": 1}, {"a": 1}) == ""
