"""The table of a sweep from plain results, its pictures, and its parent run in a real store."""

from __future__ import annotations

import csv
from io import StringIO
from pathlib import Path

import numpy as np
import pytest

from feedrate.errors import UserError
from feedrate.tracking.sweep import Plan, SweepRun
from feedrate.tracking.sweep_plots import MEASURES, sweep_figure
from feedrate.tracking.sweep_report import Report
from feedrate.tracking.sweep_results import Result, figures, groups, swept
from feedrate.tracking.sweep_table import as_csv, markdown
from tracking.conftest import Settings

KEYS = ["loader.num_workers", "loader.batch_size"]


def result(number: int, workers: str, batch: str, rate: float | None, best: float = 0.9, **more: str) -> Result:
    settings = {"loader.num_workers": workers, "loader.batch_size": batch}
    settings |= {k: v for k, v in more.items() if k in ("seed", "optimizer")}
    done = rate is not None
    return Result(
        number=number, settings=settings, command=f"python src/train.py job={number}",
        status="FINISHED" if done else "FAILED", error="" if done else "it | failed\nbadly",
        samples_per_s=rate, wait_pct=1e4 / rate if rate else None, epoch_s=0.5 if done else None,
        best=best if done else None, metric="validation/accuracy" if done else "",
    )  # fmt: skip


RESULTS = [
    result(0, "0", "32", 1000.0), result(1, "0", "128", 2000.0, 0.95),
    result(2, "10", "32", 4000.0), result(3, "10", "128", None),
    result(4, "2", "32", 3000.0), result(5, "2", "128", 3500.0),
]  # fmt: skip


def test_swept_keys_are_those_whose_values_differ():
    jobs = [["seed=1", "loader.num_workers=0", "+model.width=8"], ["seed=1", "loader.num_workers=2", "+model.width=9"]]
    assert swept(jobs) == ["loader.num_workers", "model.width"]


def test_the_table_names_the_fastest_and_the_most_exact_setting_with_their_commands():
    text = markdown(RESULTS, KEYS)
    fastest, exact, commands = text.split("\n\n")[:3]
    assert fastest.startswith("**Fastest: workers 10, batch size 32**")
    assert exact == "**Best validation accuracy: workers 0, batch size 128** · 0.95"
    assert commands == "```sh\npython src/train.py job=2\npython src/train.py job=1\n```"
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(RESULTS)
    assert len({line.count("|") for line in rows}) == 1
    assert "- job 3 FAILED: it | failed badly" in text


def test_the_best_jobs_figures_have_the_names_of_a_runs_metrics():
    settings, metrics = Report(KEYS).best(RESULTS)
    assert settings == "workers 10, batch size 32"
    assert metrics == {"loader/samples_per_s": 4000.0, "loader/wait_pct": 2.5, "validation/accuracy": 0.9}
    assert Report(KEYS).best([RESULTS[3]]) == ("", {})


def test_equal_results_are_said_to_be_equal():
    assert "The best validation accuracy is 0.9 with every setting." in markdown(RESULTS[::2], KEYS)


def test_a_sweep_of_failures_says_so():
    assert markdown([RESULTS[3]], KEYS).startswith("**No job finished.**")


def test_the_csv_has_full_precision_under_the_keys_own_names():
    rows = list(csv.DictReader(StringIO(as_csv(RESULTS, KEYS))))
    assert [row["loader.num_workers"] for row in rows] == ["0", "0", "10", "10", "2", "2"]
    assert float(rows[5]["wait_pct"]) == 1e4 / 3500.0
    assert rows[3]["status"] == "FAILED"
    assert rows[1]["validation/accuracy"] == "0.95"


def test_several_seeds_give_mean_and_spread():
    results = [result(i, "0", "32", rate, best, seed=str(i)) for i, (rate, best) in enumerate([(100, 0.8), (300, 0.9)])]
    (group,) = groups(results, ["seed"])
    assert (group.mean("samples_per_s"), group.mean("best")) == (200.0, pytest.approx(0.85))
    assert group.spread("samples_per_s") == pytest.approx(np.std([100, 300], ddof=1))
    assert "0.85 ± 0.07071" in markdown(results, ["seed"])


def test_a_cold_first_epoch_does_not_count():
    epochs = [{"loader/samples_per_s": rate, "loader/wait_pct": 5.0} for rate in (1.0, 10.0, 30.0, 20.0)]
    measured = figures({"history": epochs, "phases_s": {"wait": 2.0, "compute": 6.0, "evaluation": 9.0}, "best": {}})
    assert measured["samples_per_s"] == 20.0
    assert measured["epoch_s"] == 2.0


@pytest.mark.parametrize("measure", MEASURES)
def test_two_swept_keys_make_a_heat_map_with_its_numbers_in_order(measure):
    figure = sweep_figure(groups(RESULTS, KEYS), measure)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "2", "10"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["32", "128"]
    assert "with workers 10, batch size 32" in axes.get_title(loc="left")
    assert [text.get_text() for text in axes.texts][-1] == "none"  # the job that failed


@pytest.mark.parametrize("keys", [KEYS[:1], ["optimizer"], ["optimizer", *KEYS]], ids=["line", "bars", "long"])
def test_other_sweeps_have_a_picture_too(keys):
    results = [
        result(i, str(i), str(32 * i), 100.0 + i, optimizer=name) for i, name in enumerate(["adamw", "sgd", "own"])
    ]
    figure = sweep_figure(groups(results, keys), "samples_per_s")
    assert "most: 102 with" in figure.axes[0].get_title(loc="left")


def plan(folder: Path, run_id: str = "") -> Plan:
    return Plan(name="sweep seed", sweep_id="a", command="python src/train.py -m seed=0,1", folder=folder,
                settings={"seed": "0, 1"}, run_id=run_id)  # fmt: skip


def test_a_parent_run_is_gone_on_with_and_its_dead_children_are_marked(database, tmp_path, read):
    settings = Settings(str(database))

    def opened(run_id: str = "") -> SweepRun:
        return SweepRun(settings, plan(tmp_path, run_id), owned=lambda path: path.name == "alive")

    first = opened()
    children = {
        name: read.create_run(
            read.get_run(first.run_id).info.experiment_id,
            tags={"mlflow.parentRunId": first.run_id, "feedrate.run_folder": str(tmp_path / name)},
        ).info.run_id
        for name in ("alive", "dead")
    }
    first.end("KILLED", "the sweep was interrupted")
    assert read.get_run(first.run_id).data.tags["feedrate.error"] == "the sweep was interrupted"
    again = opened(first.run_id)
    assert again.run_id == first.run_id
    assert read.get_run(again.run_id).info.status == "RUNNING"
    assert "feedrate.error" not in read.get_run(again.run_id).data.tags
    assert {name: read.get_run(run_id).info.status for name, run_id in children.items()} == {
        "alive": "RUNNING", "dead": "KILLED",
    }  # fmt: skip
    assert "without a word" in read.get_run(children["dead"]).data.tags["feedrate.error"]


def test_a_parent_run_that_was_deleted_or_lies_in_another_store_begins_anew(database, tmp_path, read):
    settings = Settings(str(database))
    first = SweepRun(settings, plan(tmp_path), owned=lambda _: False)
    read.delete_run(first.run_id)
    for run_id in (first.run_id, "0" * 32):
        other = SweepRun(settings, plan(tmp_path, run_id), owned=lambda _: False)
        assert read.get_run(other.run_id).info.status == "RUNNING"
        assert other.run_id not in (first.run_id, run_id)


def test_a_job_that_never_came_to_its_own_run_gets_one_with_its_error(database, tmp_path, read):
    sweep = SweepRun(Settings(str(database)), plan(tmp_path), owned=lambda _: False)
    sweep.mark(tmp_path / "3", "FAILED", "no such folder at http://me:secret@host", {"feedrate.job": "3"})
    experiment = read.get_experiment_by_name("feedrate").experiment_id
    (child,) = read.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{sweep.run_id}'")
    assert (child.info.status, child.info.run_name) == ("FAILED", "job 3")
    assert child.data.tags["feedrate.error"] == "no such folder at http://***@host"


def test_a_store_that_is_no_store_is_answered_before_any_job(tmp_path):
    (tmp_path / "no.db").write_text("this is no database, and longer than its header of one hundred bytes " * 3)
    with pytest.raises(UserError, match="cannot be used"):
        SweepRun(Settings(str(tmp_path / "no.db")), plan(tmp_path), owned=lambda _: False)
