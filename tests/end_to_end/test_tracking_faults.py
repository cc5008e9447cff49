"""A tracking store that is away, hangs, fails, refuses or is locked costs a note: no training, no metric, no order."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from faulty_server import FaultyServer
from started import until

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "dataset.limit=256",
    "loader.num_workers=0",
    "model=mlp",
    "trainer.max_epochs=3",
    "tracking.system_metrics=false",
)

pytestmark = pytest.mark.slow


def free_port() -> int:
    """A port outside the range of automatically chosen ones, so that it is still free some seconds later."""
    for port in random.sample(range(10_000, 30_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("a hundred ports are taken")


def answers(url: str) -> bool:
    with suppress(OSError, http.client.HTTPException), urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
        return bool(answer.status == 200)
    return False


@pytest.fixture(scope="module")
def server(tmp_path_factory, make_store):
    """A real MLflow server with its own store."""
    folder = tmp_path_factory.mktemp("server")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port),
             "--backend-store-uri", f"sqlite:///{make_store(folder)}",
             "--artifacts-destination", f"{folder}/artifacts"],
            cwd=folder, stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
        )  # fmt: skip
    try:
        until(lambda: answers(url) or process.poll() is not None)
        assert process.poll() is None, (folder / "log").read_text()
        yield SimpleNamespace(port=port, url=url, process=process, folder=folder)
    finally:
        for signum in (signal.SIGCONT, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signum)
        process.wait()


def start(folder: Path, digits: Path, uri: str, *more: str, **environment: str) -> subprocess.Popen[str]:
    arguments = [f"tracking.uri={uri}", f"dataset.root={digits}", f"hydra.run.dir={folder}"]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "src/train.py"), *SMALL, *arguments, *more],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **environment},
    )  # fmt: skip


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    said, _ = process.communicate(timeout=400)
    assert process.returncode == code, said
    return said


def sync(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "src/sync.py"), *arguments], capture_output=True, text=True, timeout=400
    )


def uploaders(folder: Path) -> list[psutil.Process]:
    """Uploaders that hold that folder's journal."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        try:
            if "feedrate.tracking.uploader" in (process.info["cmdline"] or []) and any(
                file.path.startswith(str(folder)) for file in process.open_files()
            ):
                found.append(process)
        except psutil.Error:
            continue
    return found


def complete(uri: str, folder: Path, *, without: str = "") -> None:
    """Every metric of every epoch is in the store exactly once, in order, with its step and the time of its journal."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    summary = json.loads((folder / "summary.json").read_text())
    run = client.get_run(summary["run_id"])
    assert run.info.status == "FINISHED"
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    rows = [(key, value, line["step"], line["time_ms"]) for line in lines if line["event"] == "metrics"
            for key, value in line["values"].items()]  # fmt: skip
    for name in {row[0] for row in rows} - {without}:
        found = [(m.value, m.step, m.timestamp) for m in client.get_metric_history(summary["run_id"], name)]
        assert found == [(value, step, time_ms) for key, value, step, time_ms in rows if key == name], name
    for epoch, metrics in enumerate(summary["history"]):
        for name, value in metrics.items():
            if name != without and name in {row[0] for row in rows}:  # others were 0 or 100 all the time
                (stored,) = [m.value for m in client.get_metric_history(summary["run_id"], name) if m.step == epoch]
                assert stored == pytest.approx(value, rel=1e-5)
    assert run.data.params["model"] == "mlp"
    assert {"config.yaml", "plots", "checkpoints"} <= {a.path for a in client.list_artifacts(summary["run_id"])}


def test_a_server_that_is_down_hangs_or_fails_costs_a_note_and_sync_sends_everything(server, digits, tmp_path):
    faulty = {mode: FaultyServer(server.port, mode) for mode in ("hang", "500")}
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and not listening: refuses
        uris = {mode: one.url for mode, one in faulty.items()} | {
            "refuse": f"http://127.0.0.1:{unused.getsockname()[1]}"
        }
        runs = {mode: start(tmp_path / mode, digits, uri) for mode, uri in uris.items()}
        free = start(tmp_path / "none", digits, "null", "tracking=none")
        said = {mode: ended(run) for mode, run in runs.items()}
        ended(free)
    weights = torch.load(tmp_path / "none/checkpoints/last.pt", weights_only=True)["model"]
    for mode, text in said.items():
        assert f"the record is kept in {tmp_path}/{mode}, and sent when that is possible" in text, text
        assert f"python src/sync.py {tmp_path / mode}" in text, text
        assert "epoch 3/3" in text
        assert uploaders(tmp_path / mode) == []
        for name, tensor in torch.load(tmp_path / mode / "checkpoints/last.pt", weights_only=True)["model"].items():
            assert torch.equal(tensor, weights[name])
    for one in faulty.values():
        one.mode = "pass"
    done = sync(str(tmp_path), f"tracking.uri={server.url}")
    assert done.returncode == 0, done.stderr
    for mode in said:
        complete(server.url, tmp_path / mode)
    assert "nothing is left to send" in sync(str(tmp_path / "hang"), f"tracking.uri={server.url}").stdout
    for one in faulty.values():
        one.close()


def test_a_sweep_without_its_server_goes_on_and_sync_puts_parent_and_jobs_together(server, digits, tmp_path):
    from mlflow import MlflowClient

    arguments = [*SMALL, f"dataset.root={digits}", f"hydra.sweep.dir={tmp_path}/sweep", "trainer.max_epochs=1"]
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        uri = f"tracking.uri=http://127.0.0.1:{unused.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, str(ROOT / "src/train.py"), "-m", uri, *arguments, "seed=0,1", "hydra.launcher.jobs=2"],
            capture_output=True, text=True, timeout=400,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"the record is kept in {tmp_path}/sweep, and sent when that is possible" in done.stdout
    sent = sync(str(tmp_path / "sweep"), f"tracking.uri={server.url}")
    assert sent.returncode == 0, sent.stderr
    client = MlflowClient(server.url)
    (parent,) = [
        run for run in client.search_runs([client.get_experiment_by_name("feedrate").experiment_id])
        if run.data.tags["feedrate.run_folder"] == f"{tmp_path}/sweep"
    ]  # fmt: skip
    jobs = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert [parent.info.status, *(run.info.status for run in jobs)] == ["FINISHED"] * 3
    assert "sweep.csv" in {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}


def test_a_server_that_stops_and_goes_on_while_training_runs_has_everything_at_the_end(server, digits, tmp_path):
    run = start(tmp_path / "run", digits, server.url, "trainer.max_epochs=40")
    while not (tmp_path / "run/journal.state.json").exists():
        assert run.poll() is None, run.communicate()[0]
        time.sleep(0.05)
    os.killpg(server.process.pid, signal.SIGSTOP)
    try:
        time.sleep(3)
    finally:
        os.killpg(server.process.pid, signal.SIGCONT)
    assert "sync.py" not in ended(run)
    complete(server.url, tmp_path / "run")


def test_a_slow_server_and_one_that_refuses_a_metric_get_the_rest(server, digits, tmp_path):
    slow, refusing = FaultyServer(server.port, "slow"), FaultyServer(server.port, "reject:validation/loss")
    runs = {
        "slow": start(tmp_path / "slow", digits, slow.url),
        "reject": start(tmp_path / "reject", digits, refusing.url),
    }
    assert "sync.py" not in ended(runs["slow"])
    text = ended(runs["reject"])
    assert "refused metric validation/loss" in text
    assert "refused artifact summary.json" in text
    complete(server.url, tmp_path / "slow")
    complete(server.url, tmp_path / "reject", without="validation/loss")
    slow.close()
    refusing.close()


def test_a_locked_database_costs_a_note_and_sync_sends_everything(digits, tmp_path, make_store):
    database = make_store(tmp_path)
    with closing(sqlite3.connect(database)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        text = ended(start(tmp_path / "run", digits, str(database)))
        holder.rollback()
    assert f"python src/sync.py {tmp_path / 'run'}" in text
    done = sync(str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    complete(f"sqlite:///{database}", tmp_path / "run")


def test_a_run_that_is_killed_is_marked_by_its_uploader_which_ends_then(digits, tmp_path, make_store):
    from mlflow import MlflowClient

    database = make_store(tmp_path)
    # of epochs that are not too short, or its record grows faster than any store takes it
    long = ("trainer.max_epochs=100000", "loader.batch_size=8")
    run = start(tmp_path / "run", digits, str(database), *long)
    state = tmp_path / "run/journal.state.json"
    until(lambda: state.exists() and json.loads(state.read_text())["offsets"]["journal.jsonl"] > 20_000)
    assert "still runs as process" in sync(str(tmp_path / "run")).stdout
    os.kill(run.pid, signal.SIGKILL)
    run.communicate(timeout=100)
    until(lambda: uploaders(tmp_path / "run") == [])
    found = MlflowClient(f"sqlite:///{database}").get_run(json.loads(state.read_text())["run_id"])
    assert found.info.status == "KILLED"
    assert "without recording its status" in found.data.tags["feedrate.error"]


def test_no_secret_of_address_override_or_environment_is_left_anywhere(digits, tmp_path, make_store):
    """The store is a file, so that everything that was recorded can be searched."""
    address = f"sqlite:///{make_store(tmp_path)}"
    said = ended(
        start(
            tmp_path / "run",
            digits,
            address,
            "+loader.api_key=0v3rr1de",
            "tracking.run_name=from-env1r0nment",
            MY_API_TOKEN="env1r0nment",
        ),
        code=1,
    )  # the loader has no such key: the mistake is said without its value
    assert "0v3rr1de" not in said
    said = ended(
        start(tmp_path / "run2", digits, address, "tracking.run_name=from-env1r0nment",
              "tracking.artifacts=" + str(tmp_path / "artifacts"), MY_API_TOKEN="env1r0nment")
    )  # fmt: skip
    away = ended(start(tmp_path / "run3", digits, "http://ann:pa55w0rd@127.0.0.1:9"))
    assert "pa55w0rd" not in away
    assert "env1r0nment" not in said
    for path in tmp_path.rglob("*"):
        for secret in (b"0v3rr1de", b"env1r0nment", b"pa55w0rd"):
            assert path.is_dir() or secret not in path.read_bytes(), (path, secret)
