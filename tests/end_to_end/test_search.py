"""Searches as a person starts them: from a file, with poor trials stopped early, killed and started again."""

from __future__ import annotations

import contextlib
import csv
import json
import time
from types import SimpleNamespace

import pytest

from feedrate.system.text import wrapped_command
from feedrate.trainer import checkpoint
from sweep_process import cut_power, start, sweep

pytestmark = pytest.mark.slow

TRIALS = 5
SEARCH = """# @package _global_
defaults:
  - override /hydra/sweeper: optuna
trainer: {max_epochs: 3, checkpoint_every_s: 0}
hydra:
  sweeper:
    study: mine
    metric: validation/loss
    n_trials: 5
    space:
      optimizer.lr: {type: categorical, choices: [0.05, 1.0e-7]}
      loader.batch_size: {type: int, low: 4, high: 8, step: 4}
      +model.death: {type: categorical, choices: [slow]}
    sampler: {name: RandomSampler, seed: 1}
    pruner: {name: MedianPruner, n_startup_trials: 1, n_warmup_steps: 0}
"""
KEPT = ["tracking.system_metrics=false", "+model.hold_at=3"]  # the third trial waits to be killed


@pytest.fixture(scope="module")
def searched(tmp_path_factory, digits, make_store):
    """A search of five trials, killed altogether in the middle of the third one; then the same command again, twice."""
    folder = tmp_path_factory.mktemp("searched")
    arguments = [f"tracking.uri={make_store(folder)}", *KEPT]

    def place(name: str) -> str:
        return f"hydra.sweep.dir={folder}/sweeps/{name}"

    process = start(folder, digits, *arguments, place("first"), experiment=SEARCH)
    saved = folder / "sweeps/first/2/checkpoints/last.pt"
    while True:
        assert process.poll() is None, process.communicate()
        with contextlib.suppress(OSError, ValueError):
            if checkpoint.load(saved)["batches"] > 2:
                break
        time.sleep(0.02)
    cut_power(process)
    before = {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("sweeps/first/[01]/summary.json")}
    second = sweep(folder, digits, *arguments, place("second"), "hydra.launcher.jobs=2", experiment=SEARCH)
    third = sweep(folder, digits, *arguments, place("third"), experiment=SEARCH)
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("feedrate").experiment_id])
    return SimpleNamespace(
        folder=folder, first=folder / "sweeps/first", before=before, second=second, third=third, client=client,
        parents=[run for run in runs if "mlflow.parentRunId" not in run.data.tags],
        children=[run for run in runs if "mlflow.parentRunId" in run.data.tags],
        rows=list(csv.DictReader((folder / "sweeps/first/sweep.csv").open())),
    )  # fmt: skip


def test_a_killed_search_goes_on_with_its_study_and_repeats_no_trial_that_ended(searched):
    assert searched.second.returncode == 0, searched.second.stderr
    assert "study mine: 2 of 5 trials are done" in searched.second.stdout
    assert "trial 2 of 5: " in searched.second.stdout
    assert "(resumed where it was interrupted)" in searched.second.stdout
    assert sorted(path.name for path in searched.first.glob("[0-9]*")) == [str(i) for i in range(TRIALS)]
    for name, changed in searched.before.items():
        assert (searched.first / name / "summary.json").stat().st_mtime_ns == changed
    assert [path.name for path in (searched.folder / "sweeps").iterdir() if path.is_dir()] == ["first"]


def test_a_search_that_has_its_trials_says_so_and_how_to_have_more(searched):
    assert searched.third.returncode == 0, searched.third.stderr
    assert "study mine: 5 of 5 trials are done; more with hydra.sweeper.n_trials=N" in searched.third.stdout
    assert "**Best trial: " in searched.third.stdout


def test_poor_trials_are_stopped_early_and_end_in_order(searched):
    pruned = [row["trial"] for row in searched.rows if row["status"] == "PRUNED"]
    assert pruned
    assert {row["status"] for row in searched.rows} == {"FINISHED", "PRUNED"}
    for row in searched.rows:
        summary = json.loads((searched.first / row["trial"] / "summary.json").read_text())
        assert summary["status"] == "FINISHED"
        assert float(row["validation/loss"]) == summary["best"]["validation/loss"]
        if row["trial"] in pruned:
            assert summary["epochs"] < 3
            assert summary["stopped"].startswith("stopped by the search: validation/loss=")
        else:
            assert summary["epochs"] == 3
            assert row["optimizer.lr"] == "0.05"


def test_mlflow_has_one_parent_with_table_and_pictures_and_a_child_for_each_trial(searched):
    (parent,) = searched.parents
    assert (parent.info.run_name, parent.info.status) == ("search mine", "FINISHED")
    assert parent.data.params["optimizer.lr"] == "0.05, 1e-07"
    assert parent.data.params["loader.batch_size"] == "4 to 8, step 4"
    names = {artifact.path for artifact in searched.client.list_artifacts(parent.info.run_id)}
    assert names == {"sweep.md", "sweep.csv", "search_history.png", "search_keys.png"}
    note = parent.data.tags["mlflow.note.content"]
    best = min((row for row in searched.rows if row["status"] == "FINISHED"), key=lambda r: float(r["validation/loss"]))
    assert note.startswith("**Best trial: lr 0.05, batch size ")
    assert f"```sh\n{wrapped_command(best['command'])}\n```" in note
    assert f"optimizer.lr={best['optimizer.lr']} " in best["command"]
    assert {run.info.status for run in searched.children} == {"FINISHED"}
    assert sorted(run.data.tags["feedrate.job"] for run in searched.children) == [row["trial"] for row in searched.rows]
    pruned = {run.data.tags["feedrate.job"]: run.data.tags.get("feedrate.pruned") for run in searched.children}
    assert pruned == {row["trial"]: "true" if row["status"] == "PRUNED" else None for row in searched.rows}


@pytest.mark.parametrize(
    ("search", "said"),
    [
        (SEARCH.replace("optimizer.lr", "optimizer.lrr"), "optimizer.lrr is not a key of the group optimizer"),
        (SEARCH.replace("low: 4", "low: 0"), "loader.batch_size=0: must be at least 1"),
        (
            SEARCH.replace("high: 8", "high: 16"),
            "hydra.sweeper.study=mine is of another search: "
            "hydra.sweeper.space.loader.batch_size was 4 to 8, step 4, is 4 to 16, step 4\n"
            "Give this one another name, or begin a new study with sweep.again=true",
        ),
        (SEARCH.replace("max_epochs: 3", "max_epochs: 4"), "is of another search: trainer.max_epochs was 3, is 4"),
    ],
    ids=["key", "range", "another space", "another setting"],
)
def test_what_is_wrong_is_answered_before_any_job_starts(searched, digits, search, said):
    folder = searched.folder
    done = sweep(folder, digits, f"tracking.uri={folder}/mlflow.db", *KEPT,
                 f"hydra.sweep.dir={folder}/sweeps/wrong", experiment=search)  # fmt: skip
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") <= 3
    assert not (folder / "sweeps/wrong").exists()


def test_a_metric_that_no_run_has_is_answered_after_the_first_trial(tmp_path, digits):
    search = SEARCH.replace("metric: validation/loss", "metric: validation/los").replace("[slow]", "['no']")
    done = sweep(tmp_path, digits, "tracking=none", f"hydra.sweep.dir={tmp_path}/out", experiment=search)
    assert done.returncode == 1
    assert (
        "hydra.sweeper.metric=validation/los: trial 0 has no such metric; did you mean validation/loss?" in done.stderr
    )
    assert [path.name for path in (tmp_path / "out").glob("[0-9]*")] == ["0"]
