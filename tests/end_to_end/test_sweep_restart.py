"""Sweeps that are killed or interrupted, and started again: nothing is repeated, lost or left behind."""

from __future__ import annotations

import contextlib
import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from feedrate.trainer import checkpoint
from started import comes, until
from sweep_process import ROOT, cut_power, start

pytestmark = pytest.mark.slow

SLOW = [
    "+model.death=slow", "+model.hold_at=4", "seed=0,1", "trainer.max_epochs=4", "loader.batch_size=4",
    "trainer.checkpoint_every_s=0", "tracking.system_metrics=false",
]  # fmt: skip


def store(folder: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{folder}/mlflow.db")


def runs(folder: Path, experiment: str = "feedrate") -> list[Any]:
    client = store(folder)
    return list(client.search_runs([client.get_experiment_by_name(experiment).experiment_id]))


def jobs_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes that a launcher has started: the sweep's uploader, if it is recorded, and the running jobs."""
    return psutil.Process(process.pid).children()


def wait_until_in_the_middle(process: subprocess.Popen[str], job: Path, epoch: int) -> None:
    """Until the job has written a checkpoint within that epoch."""
    while True:
        assert process.poll() is None, process.communicate()
        with contextlib.suppress(OSError, ValueError):
            state = checkpoint.load(job / "checkpoints/last.pt")
            if (state["epoch"], state["phase"]) >= (epoch, "training") and state["batches"] > 3:
                return
        time.sleep(0.02)


def gone(process: psutil.Process) -> bool:
    """Whether a process ends within a minute."""

    def ended() -> bool:
        try:
            return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    return comes(ended, 60, pause=0.05)


@pytest.fixture(scope="module")
def killed(tmp_path_factory, digits, make_store):
    """A sweep, killed twice in the middle of its second job, then started twice at once; and an undisturbed one.

    Of the undisturbed one somebody reads the first line only, as `head -1` does.
    """
    folder = tmp_path_factory.mktemp("killed")
    calm = start(
        folder, digits, *SLOW, "tracking=none", "hydra.launcher.jobs=2", f"hydra.sweep.dir={folder}/calm/first"
    )
    assert calm.stdout is not None
    assert calm.stderr is not None
    assert calm.stdout.readline() == "sweep of 2 jobs, 2 at once\n"
    calm.stdout.close()
    errors = calm.stderr.read()
    assert calm.wait(timeout=600) == 0, errors
    arguments = [*SLOW, f"tracking.uri={make_store(folder)}"]
    job = folder / "sweeps/first/1"

    # everything at once; the fourth start of the model, that of this job, waits for it
    process = start(folder, digits, *arguments, f"hydra.sweep.dir={folder}/sweeps/first")
    wait_until_in_the_middle(process, job, 0)
    cut_power(process)
    finished_at = (folder / "sweeps/first/0/summary.json").stat().st_mtime_ns

    # the launcher alone: its job writes a checkpoint and ends, while the sweep is started again already
    process = start(folder, digits, *arguments, f"hydra.sweep.dir={folder}/sweeps/second")
    wait_until_in_the_middle(process, job, 1)
    orphans = jobs_of(process)
    process.kill()
    both = [start(folder, digits, *arguments, f"hydra.sweep.dir={folder}/sweeps/third{i}") for i in range(2)]
    said = [other.communicate(timeout=600) for other in both]
    process.communicate(timeout=60)
    return SimpleNamespace(
        folder=folder, job=job, orphans=orphans, finished_at=finished_at,
        ends=sorted((other.returncode, *texts) for other, texts in zip(both, said, strict=True)),
    )  # fmt: skip


def test_of_two_restarts_at_once_one_goes_on_and_the_other_says_that_it_runs_already(killed):
    (code, output, errors), (refused, _, told) = killed.ends
    assert (code, refused) == (0, 1), errors
    assert told.startswith("error: this sweep is running already: process ")
    assert told.count("\n") == 2
    assert "job 0 finished before" in output
    assert "job 1 of 2: seed=1  (resumed where it was interrupted)" in output
    assert [path.name for path in (killed.folder / "sweeps").iterdir() if path.is_dir()] == ["first"]


def test_a_killed_job_goes_on_in_its_own_folder_and_run_and_a_finished_one_is_not_repeated(killed):
    first = killed.job.parent
    assert sorted(path.name for path in first.glob("[0-9]*")) == ["0", "1"]
    assert (first / "0/summary.json").stat().st_mtime_ns == killed.finished_at
    found = runs(killed.folder)
    children = [run for run in found if "mlflow.parentRunId" in run.data.tags]
    assert sorted(run.data.tags["feedrate.job"] for run in children) == ["0", "1"]
    assert {run.info.status for run in found} == {"FINISHED"}
    assert len(found) == 3
    assert all(gone(orphan) for orphan in killed.orphans)
    assert not list((killed.folder / "sweeps").rglob("lock"))


@pytest.mark.parametrize("job", [0, 1])
def test_weights_and_metrics_are_those_of_an_undisturbed_sweep_bit_for_bit(killed, job):
    calm, disturbed = killed.folder / f"calm/first/{job}", killed.job.parent / str(job)
    for name in ("best", "last"):
        one, other = (torch.load(path / f"checkpoints/{name}.pt") for path in (calm, disturbed))
        assert one["model"].keys() == other["model"].keys()
        assert all(torch.equal(one["model"][key], other["model"][key]) for key in one["model"])
    one, other = (json.loads((path / "summary.json").read_text()) for path in (calm, disturbed))
    assert one["order_digest"] == other["order_digest"]
    results = [
        [{k: v for k, v in epoch.items() if k.startswith(("train/", "validation/"))} for epoch in summary["history"]]
        for summary in (one, other)
    ]
    assert results[0] == results[1]
    rows = [list(csv.DictReader((path.parent / "sweep.csv").open()))[job] for path in (calm, disturbed)]
    assert rows[0]["validation/accuracy"] == rows[1]["validation/accuracy"]
    assert {row["status"] for row in rows} == {"FINISHED"}


def test_a_job_whose_launcher_is_gone_still_ends_in_order(tmp_path, digits):
    settings = [*(override for override in SLOW if not override.startswith("seed")), "trainer.max_epochs=100"]
    process = start(tmp_path, digits, *settings, "tracking=none", f"hydra.run.dir={tmp_path}/run", many=False)
    wait_until_in_the_middle(process, tmp_path / "run", 0)
    for pipe in (process.stdout, process.stderr):
        pipe.close()  # its output is no longer read
    process.terminate()
    assert process.wait(timeout=60) == 143
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["status"], summary["error"]) == ("KILLED", "stopped by SIGTERM")
    assert not (tmp_path / "run/lock").exists()


@pytest.mark.parametrize(
    ("death", "signals", "code"),
    [
        ("wait", [signal.SIGINT], 130),
        ("wait", [signal.SIGTERM], 143),
        ("wait", [signal.SIGHUP], 129),
        ("deaf", [signal.SIGINT, signal.SIGINT], 130),
    ],
    ids=["Ctrl-C", "SIGTERM", "a closed terminal", "Ctrl-C twice"],
)
def test_an_interrupted_sweep_ends_its_job_marks_itself_and_leaves_nothing_behind(
    killed, tmp_path, digits, death, signals, code
):
    process = start(tmp_path, digits, f"tracking.uri={killed.folder}/mlflow.db", f"tracking.experiment={tmp_path.name}",
                    f"+model.death={death}", "seed=0,1", f"hydra.sweep.dir={tmp_path}/out")  # fmt: skip
    while not list((tmp_path / "notes").glob(f"{death}-*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    started = jobs_of(process)
    assert len(started) == 2
    assert process.stderr is not None
    errors = ""
    for signum in signals:
        process.send_signal(signum)
        while "the running jobs write a checkpoint" not in errors:  # the first is heard before the second comes
            errors += process.stderr.readline() or pytest.fail(f"it has ended: {errors}")
    errors += process.stderr.read()
    assert process.wait(timeout=100) == code, errors
    assert "Traceback" not in errors
    assert all(gone(one) for one in started)
    assert not list(tmp_path.rglob("lock"))
    # who is stopped waits for the store for some seconds only; what is left then is sent afterwards
    send = [sys.executable, str(ROOT / "src/sync.py"), f"{tmp_path}/out"]
    until(lambda: subprocess.run(send).returncode == 0)
    # the parent and its first job; the second never began
    assert [run.info.status for run in runs(killed.folder, tmp_path.name)] == ["KILLED", "KILLED"]
    rows = list(csv.DictReader((tmp_path / "out/sweep.csv").open()))
    assert (rows[0]["status"], rows[0]["error"]) == ("KILLED", f"stopped by {signals[0].name}")
    assert rows[1]["status"] == "NOT RUN"
    assert json.loads((tmp_path / "out/summary.json").read_text())["status"] == "KILLED"
