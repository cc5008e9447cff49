"""A journal is carried in order, again without harm, and around what the store refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from feedrate.tracking.journal import JOURNAL, STATE, JournalBusy, UploadState, lock_journal
from feedrate.tracking.uploader import Uploader, destination, pending


def upload(folder: Path) -> UploadState:
    return Uploader(*destination(folder, None)).upload_dead_run(folder)


def epochs(tracker: Any, count: int) -> None:
    for epoch in range(count):
        tracker.metrics({"train/loss": 1 / (epoch + 1)}, epoch)


def test_what_is_carried_twice_is_there_once(track: Any, read: Any, tmp_path: Path) -> None:
    tracker = track()
    tracker.params({"seed": 1})
    epochs(tracker, 30)
    tracker.end("FINISHED")
    run_id = tracker.run_id
    (tmp_path / "run" / STATE).unlink()  # as when the uploader died before it could note anything
    again = track(folder=tmp_path / "run")
    again.end("FINISHED")
    assert again.run_id == run_id
    assert len(read.search_runs([read.get_run(run_id).info.experiment_id])) == 1
    assert [m.step for m in read.get_metric_history(run_id, "train/loss")] == list(range(30))


def test_a_record_that_the_store_refuses_does_not_keep_the_others_back(track: Any, read: Any, tmp_path: Path) -> None:
    tracker = track()
    tracker.params({f"p{i}": i for i in range(40)})
    tracker.params({"p7": "another value", "q": 1})  # MLflow keeps a parameter's first value
    tracker.artifact(tmp_path / "gone.txt")
    tracker.metrics({"train/loss": 1.0}, 0)
    tracker.end("FINISHED")
    run = read.get_run(tracker.run_id)
    assert (run.data.params["p7"], run.data.params["q"], run.data.metrics) == ("7", "1", {"train/loss": 1.0})
    assert run.info.status == "FINISHED"
    refused = UploadState.read(tmp_path / "run").rejected
    assert [line.partition(":")[0] for line in refused] == ["param p7", "artifact " + str(tmp_path / "gone.txt")]


def test_a_refused_batch_of_metrics_loses_only_the_name_that_is_refused(track: Any, read: Any, tmp_path: Path) -> None:
    tracker = track()
    good = {f"train/{number}": 1.0 for number in range(30)}
    tracker.metrics({**good, "train//loss": 1.0, "late": 2.0}, 1)  # MLflow takes no empty part of a name
    tracker.end("FINISHED")
    run = read.get_run(tracker.run_id)
    assert set(run.data.metrics) == {*good, "late"}
    assert [line.partition(":")[0] for line in UploadState.read(tmp_path / "run").rejected] == ["metric train//loss"]


def test_a_run_that_goes_on_is_running_again_without_its_error(track: Any, read: Any, tmp_path: Path) -> None:
    first = track()
    first.end("KILLED", "stopped by SIGTERM")
    second = track(folder=tmp_path / "run")
    run = read.get_run(second.run_id)
    assert (run.info.status, run.data.tags.get("feedrate.error")) == ("RUNNING", None)
    assert second.run_id == first.run_id


def test_a_run_that_is_deleted_or_in_another_store_is_recorded_anew_from_its_journal(
    track: Any, read: Any, tmp_path: Path
) -> None:
    first = track()
    epochs(first, 5)
    first.end("KILLED")
    deleted = first.run_id
    read.delete_run(deleted)
    second = track(folder=tmp_path / "run")
    assert second.last_step("train/loss") == 4
    second.end("FINISHED")
    assert second.run_id != deleted
    assert len(read.get_metric_history(second.run_id, "train/loss")) == 5


def test_half_a_line_of_a_process_that_was_killed_is_passed_over(track: Any, read: Any, tmp_path: Path) -> None:
    tracker = track()
    epochs(tracker, 2)
    with (tmp_path / "run" / JOURNAL).open("ab") as journal:
        journal.write(b'{"event": "metrics", "poi')
    tracker.end("KILLED")
    again = track(folder=tmp_path / "run")
    again.metrics({"train/loss": 0.1}, 2)
    again.end("FINISHED")
    assert [m.step for m in read.get_metric_history(again.run_id, "train/loss")] == [0, 1, 2]


def test_one_process_at_a_time_carries_a_journal(tmp_path: Path) -> None:
    held = lock_journal(tmp_path)  # the lock is that of an open file, so one process stands for two
    with pytest.raises(JournalBusy, match="another process"):
        lock_journal(tmp_path)
    held.close()
    lock_journal(tmp_path).close()


def test_an_artifact_that_cannot_be_stored_is_named_and_kept_and_all_that_follows_arrives(
    track: Any, read: Any, tmp_path: Path, caplog: Any
) -> None:
    (tmp_path / "disk").write_text("in the way")
    tracker = track(experiment="on a disk", artifacts=f"{tmp_path}/disk/artifacts")
    tracker.text("lr: 1", "config.yaml")
    tracker.metrics({"train/loss": 1.0}, 0)
    tracker.end("FINISHED")
    run = read.get_run(tracker.run_id)
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"train/loss": 1.0})
    assert "not stored: artifact record/config.yaml" in caplog.text
    assert f"{tmp_path}/disk" in caplog.text
    assert "src/sync.py" in caplog.text
    assert pending(tmp_path / "run") == 1

    goal = destination(tmp_path / "run", None)
    assert len(Uploader(*goal).upload_dead_run(tmp_path / "run").aside) == 1
    (tmp_path / "disk").unlink()
    assert Uploader(*goal).upload_dead_run(tmp_path / "run").aside == []
    assert pending(tmp_path / "run") == 0
    assert [path.read_text() for path in (tmp_path / "disk/artifacts").rglob("config.yaml")] == ["lr: 1"]


def test_a_record_goes_on_in_a_repository_that_was_moved(
    make_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was killed here, in a store that lies elsewhere by now, is the same run there."""
    from feedrate import config

    old, new = tmp_path / "old", tmp_path / "new"
    (old / "outputs/runs/one").mkdir(parents=True)
    make_store(old / "outputs")
    begin = {"event": "begin", "time_ms": 1, "journal": "j1", "name": "one", "tags": {}, "uri": "outputs/mlflow.db",
             "artifacts": "outputs/artifacts", "experiment": "feedrate"}  # fmt: skip
    loss = {"event": "metrics", "time_ms": 1, "step": 0, "values": {"train/loss": 1.0}}
    (old / "outputs/runs/one" / JOURNAL).write_text(json.dumps(begin) + "\n" + json.dumps(loss) + "\n")
    monkeypatch.setattr(config, "ROOT", old)
    sent = upload(old / "outputs/runs/one")
    assert sent.store == "outputs/mlflow.db"

    old.rename(new)
    monkeypatch.setattr(config, "ROOT", new)
    folder = new / "outputs/runs/one"
    with (folder / JOURNAL).open("a") as journal:
        journal.write(json.dumps({"event": "end", "time_ms": 2, "status": "FINISHED", "error": ""}) + "\n")
    again = upload(folder)
    assert (again.run_id, again.status) == (sent.run_id, "FINISHED")
    assert again.offsets[JOURNAL] > sent.offsets[JOURNAL]
    assert not old.exists()
