"""`make ui`, started for real: it serves runs, takes runs as a server, and leaves no process behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from feedrate.config import ROOT
from feedrate.tracking import open_tracker
from feedrate.tracking.point import points

pytestmark = pytest.mark.slow


@dataclass
class Pages:
    process: subprocess.Popen[str]
    said: str
    folder: Path
    url: str

    def stop(self, number: int) -> tuple[int, list[psutil.Process]]:
        """Exit code, and the processes that are left."""
        started = psutil.Process(self.process.pid).children(recursive=True)
        assert started
        self.process.send_signal(number)
        code = self.process.wait(timeout=100)
        return code, psutil.wait_procs(started, timeout=60)[1]


@pytest.fixture
def pages(tmp_path: Path) -> Iterator[Pages]:
    """src/ui.py on a store that does not exist yet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "src" / "ui.py"), "--uri", f"{tmp_path}/mlflow.db"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PORT": str(port)},
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if "Ctrl-C" in line:
                break
        url = f"http://127.0.0.1:{port}"
        assert re.search(rf"{url}/#/experiments/\d+/runs\?workflowType=machine_learning&viewStateShareKey", said), said
        yield Pages(process, said, tmp_path, url)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)


def test_the_pages_take_runs_as_a_server_and_a_lost_server_costs_no_record(pages: Pages, tmp_path: Path) -> None:
    settings = SimpleNamespace(
        uri=pages.url, experiment="by http", artifacts=None, log_model=False, system_metrics=True, run_name=None
    )
    tracker = open_tracker(settings, run_name="remote", run_folder=_folder(tmp_path / "remote"))
    tracker.params({"seed": 3})
    tracker.metrics(points({"train/loss": 0.5}, 0))
    tracker.dataset("digits", "abc", "train", 10, "/data")
    tracker.text("kept", "a.txt")
    tracker.end("FINISHED")  # waits until all is delivered
    assert tracker.url is not None
    assert tracker.url.startswith(f"{pages.url}/#/experiments/")

    with urllib.request.urlopen(f"{pages.url}/api/2.0/mlflow/runs/get?run_id={tracker.run_id}") as answer:
        run = json.load(answer)["run"]
    assert [metric["value"] for metric in run["data"]["metrics"] if metric["key"] == "train/loss"] == [0.5]
    assert [path.read_text() for path in (tmp_path / "artifacts").rglob("a.txt")] == ["kept"]

    # A run recorded into the file itself, meanwhile, has the link of this server though its port is not the usual one.
    local = SimpleNamespace(**(vars(settings) | {"uri": f"{tmp_path}/mlflow.db", "experiment": "by file"}))
    beside = open_tracker(local, run_name="beside", run_folder=_folder(tmp_path / "beside"))
    beside.end("FINISHED")
    assert beside.url is not None
    assert beside.url.startswith(pages.url)

    code, left = pages.stop(signal.SIGTERM)
    assert (code, left) == (0, [])
    lost = open_tracker(settings, run_name="lost", run_folder=_folder(tmp_path / "lost"))
    lost.metrics(points({"train/loss": 0.4}, 1))
    lost.end("FINISHED")
    assert lost.url is None
    assert "train/loss" in (tmp_path / "lost/journal.jsonl").read_text()  # for sync.py


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_ctrl_c_ends_the_pages_and_all_their_processes(pages: Pages) -> None:
    assert pages.stop(signal.SIGINT) == (0, [])
    left = {path.name for path in pages.folder.iterdir()}
    assert left - {"mlflow.db-wal", "mlflow.db-shm"} == {"mlflow.db", "mlflow.db.lock"}  # SQLite's own, after a kill


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["high"], "port high: a port is a number"),
        (["70000"], "port 70000"),
        (["--uri", "http://ann:secret@host:5000"], "--uri=http://***@host:5000: only an SQLite file"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments: list[str], text: str) -> None:
    wrong(arguments, text)


def test_a_port_that_is_taken_is_named_with_the_remedy() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        wrong([port], f"port {port} cannot be used")
        wrong([port], "PORT=")


def wrong(arguments: list[str], text: str) -> None:
    done = subprocess.run([sys.executable, str(ROOT / "src/ui.py"), *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1
