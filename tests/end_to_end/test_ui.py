"""`make ui`, started for real: it serves runs, takes runs as a server, and leaves no process behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace

import pytest

from feedrate.config import ROOT
from feedrate.tracking import open_tracker
from pages import Pages, served

pytestmark = pytest.mark.slow


@pytest.fixture
def pages(tmp_path: Path) -> Iterator[Pages]:
    """The pages of a store that does not exist yet."""
    with served(tmp_path / "mlflow.db") as pages:
        yield pages


def test_the_pages_take_runs_as_a_server_and_a_lost_server_costs_no_record(pages: Pages, tmp_path: Path) -> None:
    settings = SimpleNamespace(
        uri=pages.url, experiment="by http", artifacts=None, log_model=False, system_metrics=True, run_name=None
    )
    tracker = open_tracker(settings, run_name="remote", run_folder=_folder(tmp_path / "remote"))
    tracker.params({"seed": 3})
    tracker.metrics({"train/loss": 0.5}, 0)
    tracker.dataset("digits", "abc", "train", 10, "/data")
    tracker.text("kept", "a.txt")
    tracker.end("FINISHED")  # waits until all is delivered
    assert tracker.url is not None
    assert tracker.url.startswith(f"{pages.url}/#/experiments/")

    with urllib.request.urlopen(f"{pages.url}/api/2.0/mlflow/runs/get?run_id={tracker.run_id}") as answer:
        run = json.load(answer)["run"]
    assert [metric["value"] for metric in run["data"]["metrics"] if metric["key"] == "train/loss"] == [0.5]
    assert [path.read_text() for path in (tmp_path / "artifacts").rglob("a.txt")] == ["kept"]

    code, left = pages.stop(signal.SIGTERM)
    assert (code, left) == (0, [])
    lost = open_tracker(settings, run_name="lost", run_folder=_folder(tmp_path / "lost"))
    lost.metrics({"train/loss": 0.4}, 1)
    lost.end("FINISHED")
    assert lost.url is None
    assert "train/loss" in (tmp_path / "lost/journal.jsonl").read_text()  # for sync.py


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_ctrl_c_ends_the_pages_and_all_their_processes(pages: Pages, tmp_path: Path) -> None:
    assert pages.stop(signal.SIGINT) == (0, [])
    left = {path.name for path in tmp_path.iterdir()}
    assert left - {"mlflow.db-wal", "mlflow.db-shm"} == {"mlflow.db", "mlflow.db.lock"}  # SQLite's own, after a kill


def test_a_server_or_a_port_that_is_taken_is_named_with_the_remedy(tmp_path: Path) -> None:
    code, said = started("--uri", "http://ann:secret@host:5000")
    assert (code, said) == (
        1,
        "Error: --uri=http://***@host:5000: only an SQLite file can be shown; a server has pages of its own\n",
    )
    with HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as taken:  # may answer as MLflow's server does
        for port in (taken.server_port, 70_000):
            code, said = started(str(port), "--uri", f"{tmp_path}/mlflow.db")
            assert code == 1
            assert said.startswith(f"Error: port {port}: ")
            assert said.endswith("choose another: make ui PORT=5001\n")


def started(*arguments: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, str(ROOT / "src/ui.py"), *arguments], capture_output=True, text=True)
    return done.returncode, done.stderr
