"""Opening the store: at once by many processes, after a kill, and when it cannot be opened."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from feedrate.config import ROOT
from feedrate.errors import UserError
from feedrate.tracking import recorded
from feedrate.tracking.address import Address, read_address
from feedrate.tracking.recorded import RecordedRun
from feedrate.tracking.store import VIEW_TAG, open_store

ONE_RUN = """
import sys
from pathlib import Path
from types import SimpleNamespace
from feedrate.tracking import open_tracker

folder = Path(sys.argv[1])
sys.stdin.readline()  # the starting shot
settings = SimpleNamespace(uri=f"{folder}/mlflow.db", experiment="race", artifacts=None, log_model=False,
                           system_metrics=False, run_name=None)
tracker = open_tracker(settings, run_name=sys.argv[2], run_folder=folder / sys.argv[2])
tracker.params({"process": sys.argv[2]})
for epoch in range(5):
    tracker.metrics({"train/loss": 1.0 / (epoch + 1)}, epoch)
tracker.text("kept", "a.txt")
tracker.end("FINISHED")
print(tracker.run_id)
"""


def _python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )


@pytest.mark.slow
def test_processes_that_start_together_on_a_fresh_store_all_record_their_run(tmp_path: Path) -> None:
    processes = [_python(ONE_RUN, str(tmp_path), f"run-{number}") for number in range(4)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    ends = [(*process.communicate(timeout=600), process.returncode) for process in processes]
    assert [(err, code) for _, err, code in ends] == [("", 0)] * 4  # and nothing was said on the terminal

    client, experiment_id = open_store(read_address(f"{tmp_path}/mlflow.db"), "race")
    runs = client.search_runs([experiment_id])
    assert {run.info.run_id for run in runs} == {out.strip() for out, _, _ in ends}
    assert {run.data.params["process"] for run in runs} == {f"run-{number}" for number in range(4)}
    for run in runs:
        assert run.info.status == "FINISHED"
        assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 5
        assert (tmp_path / "artifacts" / run.info.run_id / "artifacts" / "a.txt").read_text() == "kept"


def test_a_store_that_was_being_made_when_its_process_was_killed_is_made_anew(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    (tmp_path / ".mlflow.db.new").mkdir()
    with closing(sqlite3.connect(tmp_path / ".mlflow.db.new/mlflow.db")) as half:
        half.execute("CREATE TABLE experiments (experiment_id INTEGER)")  # MLflow's migrations would fail
    client, experiment_id = open_store(read_address(str(database)), "feedrate")
    assert client.get_experiment(experiment_id).name == "feedrate"
    assert not (tmp_path / ".mlflow.db.new").exists()
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_the_experiment_gets_its_artifact_folder_and_a_view_that_later_runs_leave_alone(
    database: Path, read: Any
) -> None:
    address = read_address(str(database))
    _, experiment_id = open_store(address, "feedrate")
    experiment = read.get_experiment(experiment_id)
    assert experiment.artifact_location == (database.parent / "artifacts").as_uri()
    assert json.loads(experiment.tags[VIEW_TAG])["state"].startswith("deflate;")
    read.set_experiment_tag(experiment_id, VIEW_TAG, "changed by the user")
    assert open_store(address, "feedrate")[1] == experiment_id
    assert read.get_experiment(experiment_id).tags[VIEW_TAG] == "changed by the user"


def test_a_run_in_a_file_is_read_as_MLflow_reads_it_but_without_its_import(database: Path, monkeypatch: Any) -> None:
    client, experiment_id = open_store(read_address(str(database)), "feedrate")
    run_id = client.create_run(experiment_id, run_name="cnn", tags={"own": "tag"}).info.run_id
    for step, value in enumerate([0.5, math.nan, math.inf, 0.25]):
        client.log_metric(run_id, f"m{step % 3}", value, step=step)
    client.log_text(run_id, "kept", "a/b.txt")
    client.set_terminated(run_id, "KILLED")
    code = "import sys; from feedrate.tracking.recorded import RecordedRun; run = RecordedRun(*sys.argv[1:])\n"
    code += "print(run.name, run.status, run.text('a/b.txt'), 'mlflow' in sys.modules)"
    command = [sys.executable, "-c", code, str(database), run_id]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    assert subprocess.check_output(command, env=environment, text=True) == "cnn KILLED kept False\n"
    found = RecordedRun(str(database), run_id)
    assert (found.metrics["m0"], found.tags["own"]) == (0.25, "tag")
    monkeypatch.setattr(recorded, "_read_tables", lambda *_: None)
    by_mlflow = RecordedRun(str(database), run_id)
    for name in ("name", "status", "url", "_artifacts", "tags", "metrics"):
        ours, theirs = (getattr(run, name) for run in (found, by_mlflow))
        assert repr(sorted(ours.items())) == repr(sorted(theirs.items())) if isinstance(ours, dict) else ours == theirs


def test_a_store_and_a_search_in_a_folder_with_any_name_lie_there_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    from feedrate.trainer.pruning import open_storage

    folder = tmp_path / "My%20Drive? {x}#é"
    address = read_address(f"{folder}/mlflow.db")
    client, experiment_id = open_store(address, "feedrate")  # made here
    run_id = client.create_run(experiment_id).info.run_id
    client.log_text(run_id, "kept", "a.txt")
    open_storage(folder / "study.db", new=True)
    open_storage(folder / "study.db", new=False)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert {"mlflow.db", "study.db", "artifacts"} <= {path.name for path in folder.iterdir()}
    assert RecordedRun(f"{folder}/mlflow.db", run_id).text("a.txt") == "kept"
    assert open_store(address, "feedrate")[1] == experiment_id


OPENED_TWICE = """
import sys
from feedrate.tracking.address import read_address
from feedrate.tracking.store import open_store
address = read_address(sys.argv[1])
for _ in range(2):
    client, experiment_id = open_store(address, "feedrate")
    client.create_run(experiment_id)
print(len(client.search_runs([experiment_id])), file=sys.stderr)
"""
SHOWN = """
import socket, sys, urllib.request
import ui
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
def opened(url, timeout, opener=urllib.request.urlopen):
    with opener(url, timeout=timeout):
        print("shown", file=sys.stderr)
    raise KeyboardInterrupt
urllib.request.urlopen = opened
sys.argv[1:] = [str(port), "--uri", sys.argv[1]]
try:
    ui.main()
except KeyboardInterrupt:
    pass
"""


@pytest.mark.parametrize(("code", "says"), [(OPENED_TWICE, "2"), pytest.param(SHOWN, "shown", marks=pytest.mark.slow)])
def test_mlflow_may_be_installed_in_a_path_with_a_percent_sign(tmp_path: Path, code: str, says: str) -> None:
    packages, temporary, database = tmp_path / "My%20Drive", tmp_path / "tmp", tmp_path / "100%" / "mlflow.db"
    for folder in (packages, temporary, database.parent):
        folder.mkdir()
    if code is SHOWN:
        open_store(read_address(str(database)), "feedrate")
    spec = importlib.util.find_spec("mlflow")
    assert spec is not None
    assert spec.origin is not None
    (packages / "mlflow").symlink_to(Path(spec.origin).parent)
    path = os.pathsep.join([str(packages), str(ROOT / "src")])
    done = subprocess.run(
        [sys.executable, "-c", code, str(database)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path, "TMPDIR": str(temporary)},
    )
    assert says in done.stderr.splitlines()
    assert not list(temporary.glob("feedrate*"))


def test_nothing_is_written_into_the_working_folder(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    client, experiment_id = open_store(read_address(str(database)), "feedrate")
    client.log_text(client.create_run(experiment_id).info.run_id, "x", "x.txt")
    assert list(elsewhere.iterdir()) == []


def test_a_deleted_experiment_is_refused_with_the_way_to_restore_it(database: Path, read: Any) -> None:
    _, experiment_id = open_store(read_address(str(database)), "old")
    read.delete_experiment(experiment_id)
    with pytest.raises(UserError, match=f"experiment=old was deleted.*\n.*restore -x {experiment_id}"):
        open_store(read_address(str(database)), "old")


def test_a_file_that_is_no_store_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    other = tmp_path / "photo.jpg"
    other.write_bytes(b"\xff\xd8 this is a picture " * 200)
    before = other.read_bytes()
    with pytest.raises(UserError, match=r"tracking.uri=.*photo.jpg cannot be used: .*not a database"):
        open_store(read_address(str(other)), "feedrate")
    assert other.read_bytes() == before


def test_a_folder_that_cannot_be_made_is_an_error_of_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"tracking.uri=.*cannot be used"):
        open_store(read_address(f"{tmp_path}/file/mlflow.db"), "feedrate")


def test_a_store_of_another_mlflow_is_refused_with_the_command_that_upgrades_it(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'cfd24bdc0731'")  # MLflow 1.x
        connection.commit()
    with pytest.raises(UserError, match=r"out-of-date database schema .*mlflow db upgrade"):
        open_store(read_address(str(database)), "feedrate")


@pytest.mark.parametrize("answers", ["refused", "silent"])
def test_a_server_that_does_not_answer_is_named_with_the_remedies_and_without_its_password(
    answers: str,
) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if answers == "silent":
            listener.listen()
        address: Address = read_address(f"http://ann:secret@127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(UserError) as caught:
            open_store(address, "feedrate")
    text = str(caught.value)
    assert "tracking.uri=http://***@127.0.0.1" in text
    assert "does not answer" in text
    assert all(remedy in text for remedy in ("make ui", "tracking=local", "tracking=none"))
    assert "secret" not in text
    assert len(text.splitlines()) <= 3
