"""The account of a run: its first epoch is told apart, and what was trained counts also where the run is broken off."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "timing"))

from accounts import account

from feedrate.errors import UserError
from feedrate.loader import Loader
from feedrate.timing.epoch_times import EpochTimes
from feedrate.timing.machine import Machine
from feedrate.tracking.journal import run_id_of
from feedrate.trainer.account import Account
from kills import ROOT, start_training
from started import until

WAITING, FED = (account(load_ms, 10, 2, cpu_share=0.0) for load_ms in (40, 10))


def told(*epochs: EpochTimes) -> Account:
    """The account of a loader with two workers after these epochs."""
    found = Account(Loader(list(range(64)), 8, seed=0, num_workers=2))  # type: ignore[arg-type]
    for times in epochs:
        found.begin()
        found.trained()
        found.end(times)
    return found


def test_a_first_epoch_that_waited_more_than_later_ones_is_told_with_the_figures_of_both() -> None:
    verdict = told(WAITING, FED, FED).verdict()
    assert verdict is not None
    assert verdict.kind == "compute-bound"
    assert verdict.first_epoch["wait_pct"] == pytest.approx(50, rel=0.02)
    assert verdict.first_epoch["samples_per_s"] == pytest.approx(400, rel=0.02)
    assert verdict.figures["samples_per_s"] == pytest.approx(800, rel=0.02)
    assert f"waited {verdict.first_epoch['wait_pct']:.0f} %, later ones 0.0 %." in verdict.reason


def test_a_first_epoch_like_the_others_is_not_mentioned() -> None:
    verdict = told(WAITING, WAITING).verdict()
    assert verdict is not None
    assert "first epoch" not in verdict.reason
    assert verdict.first_epoch["wait_pct"] == pytest.approx(verdict.figures["wait_pct"], rel=0.01)
    only = told(WAITING).verdict()
    assert only is not None
    assert only.first_epoch == {}


def test_what_the_disk_gave_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(os.urandom(8_000_000))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        before = Machine.now([])
        file.read()
    first = Machine.now([]) - before
    with path.open("rb") as file:
        before = Machine.now([])
        file.read()
    again = Machine.now([]) - before
    if first.read_mb == 0:
        pytest.skip("this file system keeps the file in memory, or does not count what is read")
    assert 7.2 <= first.read_mb < 16  # and what this process itself was short of, where memory is
    assert again.read_mb < 4


def test_an_epoch_that_is_broken_off_counts_where_it_has_enough_steps() -> None:
    for steps, judged_on in ((15, WAITING), (60, FED)):
        found = told(WAITING, WAITING)
        found.begin()
        found.broken_off(account(10, 10, 2, steps=steps))
        times = found.times
        assert times is not None
        assert (len(times.wait) > len(WAITING.wait)) == (judged_on is FED)
        found.broken_off(FED)  # there is no epoch any more that could be
        assert len(found.times.wait) == len(times.wait)  # type: ignore[union-attr]


def test_a_failed_run_has_the_verdict_of_what_was_trained(run_train, tmp_path):
    one_by_one = ("loader.batch_size=1", "loader.shuffle=false", "model=mlp")
    with pytest.raises(UserError, match="sample-39"):
        run_train("dataset=poisoned", "+dataset.bad=sample-39", *one_by_one)
    summary = json.loads(next(tmp_path.glob("run*/summary.json")).read_text())
    assert summary["status"] == "FAILED"
    assert summary["verdict"]["figures"]["wait_pct"] > 0


@pytest.mark.slow
def test_a_run_that_is_killed_has_the_verdict_of_what_was_trained(tmp_path, digits, make_store):
    folder, store = tmp_path / "run", make_store(tmp_path)
    settings = ["loader.batch_size=8", "loader.num_workers=0", "trainer.max_epochs=1000", "dataset.limit=400"]
    settings += ["model=simulated", "model.step_ms=4"]  # or there would be hundreds of epochs to send
    process = start_training(folder, f"dataset.root={digits}", f"tracking.uri={store}", *settings)
    until(lambda: "after epoch 1" in folder.with_suffix(".out").read_text() and bool(run_id_of(folder)))
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=100) == 143
    summary, output = json.loads((folder / "summary.json").read_text()), folder.with_suffix(".out").read_text()
    assert summary["status"] == "KILLED"
    # who is killed waits for the store for some seconds only; what is left then is sent afterwards
    subprocess.run([sys.executable, str(ROOT / "src/sync.py"), str(folder)], check=True)
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{store}")
    assert client.get_run(run_id_of(folder)).info.status == "KILLED"
    run = client.get_run(run_id_of(folder))
    assert run.data.tags["feedrate.verdict"] == summary["verdict"]["kind"]
    text = f"{summary['verdict']['kind']}: {summary['verdict']['reason']}"
    assert run.data.tags["feedrate.verdict_text"].startswith(text)
    assert f"until then: {text}" in output
    assert re.search(r"^run folder  \S*/run   \(goes on with trainer.resume=auto\)$", output, re.MULTILINE)
