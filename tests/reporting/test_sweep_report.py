"""The report of a sweep from plain results: table, CSV and pictures."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feedrate.reporting.report import Report
from feedrate.reporting.results import JobResult, figures, groups, swept
from feedrate.reporting.sweep_plots import MEASURES, sweep_figure

KEYS = ["loader.num_workers", "loader.batch_size"]


def result(number: int, workers: str, batch: str, rate: float | None, best: float = 0.9, **more: str) -> JobResult:
    settings = {"loader.num_workers": workers, "loader.batch_size": batch}
    settings |= {k: v for k, v in more.items() if k in ("seed", "optimizer")}
    done = rate is not None
    return JobResult(
        number=number, settings=settings, command=f"python src/train.py job={number}",
        status="FINISHED" if done else "FAILED", error="" if done else "it | failed\nbadly",
        samples_per_s=rate, wait_pct=1e4 / rate if rate else None,
        best=best if done else None, metric="validation/accuracy" if done else "",
    )  # fmt: skip


RESULTS = [
    result(0, "0", "32", 1000.0), result(1, "0", "128", 2000.0, 0.95),
    result(2, "10", "32", 4000.0), result(3, "10", "128", None),
    result(4, "2", "32", 3000.0), result(5, "2", "128", 3500.0),
]  # fmt: skip


def markdown(results: Sequence[JobResult], keys: Sequence[str]) -> str:
    return Report(keys).table(results)


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
    best = Report(KEYS).best([replace(result, run_id=f"run {result.number}") for result in RESULTS])
    assert best.settings == "workers 10, batch size 32"
    assert best.metrics == {"loader/samples_per_s": 4000.0, "loader/wait_pct": 2.5, "best/accuracy": 0.9}
    assert best.run_id == "run 2"
    assert Report(KEYS).best([RESULTS[3]]) is None


def test_equal_results_are_said_to_be_equal():
    best = "**Best validation accuracy: workers 0, batch size 32** · 0.9 · "
    assert f"{best}all 3 settings are equal within the noise" in markdown(RESULTS[::2], KEYS)
    assert f"{best}3 settings are equal within the noise" in markdown([*RESULTS[::2], RESULTS[3]], KEYS)
    assert "are equal" not in markdown(RESULTS[2:4], KEYS)  # one setting alone is compared with none


def measured(
    number: int, workers: str, rate: float, wait: float, *, step: float = 10.0, cores: float = 2.0, **more: Any
):
    """A job with three steady epochs that lie `apart` (a share) around its rate, and what the machine was like."""
    apart, best, settings = more.pop("apart", 0.005), more.pop("best", 0.9), more.pop("settings", {})
    epochs = [
        {
            "loader/samples_per_s": rate * factor, "loader/wait_pct": wait, "compute/step_ms_p50": step,
            "compute/free_cores": cores, "validation/loss": factor,
            "validation/accuracy": best if factor == 1.0 else 0.5,
            "compute/ceiling_samples_per_s": rate / (1 - (wait + more.get("held", 0.0)) / 100),
        }
        for factor in (3.0, 1 + apart, 1.0, 1 - apart)
    ]  # fmt: skip
    summary = {"history": epochs, "best": epochs[2], "best_epoch": 3, "phases_s": {"wait": 1.0, "compute": 3.0}}
    return JobResult(
        number=number, settings={KEYS[0]: workers, KEYS[1]: "32", **settings}, status="FINISHED",
        command=f"python src/train.py job={number}", **figures(summary),
    )  # fmt: skip


def rows(text: str) -> list[dict[str, str]]:
    """The table's last part, by its heads."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_jobs_beside_which_others_computed_are_ranked_by_waiting_and_a_line_says_so():
    quiet, disturbed = measured(1, "1", 7900, 1.0, step=8.0), measured(0, "0", 2400, 1.3, step=27.0, cores=1.1)
    text = markdown([disturbed, quiet, measured(2, "2", 7300, 9.0, step=8.1)], KEYS[:1])
    first, exact, line = text.split("\n\n")[:3]
    assert first.startswith("**Waits least: workers 0** · 2,400 samples/s · waited 1.3 %")  # the cheapest of two
    assert line.startswith("**Samples/s do not compare:** the compute step or the free cores differ")
    assert "workers 0** · 0.9 in epoch 3" in exact
    assert [(row["rank"], row["step ms"], row["free cores"]) for row in rows(text)] == [
        ("1", "27", "1.1"), ("1", "8.0", "2.0"), ("3", "8.1", "2.0"),
    ]  # fmt: skip
    figure = sweep_figure(groups([disturbed, quiet], KEYS[:1]), "samples_per_s")
    assert figure.get_suptitle().replace("\n", " ").endswith("do not compare: steps or free cores differ between jobs")


def test_threads_that_hold_a_step_up_are_not_said_to_wait_least():
    threads = measured(1, "1", 400, 0.1, step=20.0, held=49.0)
    text = markdown([measured(0, "0", 500, 35.0, step=10.0), threads], KEYS[:1])
    assert text.startswith("**Waits least: workers 0**")
    assert [row["held up %"] for row in rows(text)] == ["0.0", "49"]


def test_other_batch_sizes_and_models_may_have_other_steps():
    jobs = [
        measured(i, "1", 800, 1.0, step=step, settings={KEYS[1]: batch, "model": model})
        for i, (step, batch, model) in enumerate([(10.0, "32", "mlp"), (20.0, "64", "mlp"), (40.0, "64", "cnn")])
    ]
    assert "do not compare" not in markdown(jobs, [*KEYS, "model"])


def test_settings_within_the_noise_share_the_rank_and_the_cheapest_is_named():
    jobs = [measured(i, workers, rate, 1.0) for i, (workers, rate) in enumerate([("4", 1020), ("1", 1000), ("0", 700)])]
    text = markdown(jobs, KEYS[:1])
    assert text.startswith(
        "**Fastest: workers 1** · 1,000 samples/s · waited 1.0 % · 2 settings are equal within the noise, the cheapest "
        "named\n\n"
    )
    assert [row["rank"] for row in rows(text)] == ["1", "1", "3"]
    noisy = [measured(0, "4", 1200, 1.0, apart=0.25), measured(1, "1", 1000, 1.0, apart=0.25)]
    assert markdown(noisy, KEYS[:1]).startswith("**Fastest: workers 1** · 1,000 samples/s · waited 1.0 % · all 2")
    assert Report(KEYS[:1]).best(noisy).settings == "workers 1"


def test_where_a_run_has_one_epoch_its_noise_is_that_of_its_blocks():
    epoch = {"loader/samples_per_s": 1000.0, "loader/wait_pct": 1.0, "loader/noise_pct": 12.0}
    assert figures({"history": [epoch], "best": epoch})["noise"]["samples_per_s"] == 120.0
    assert figures({"history": [epoch] * 4, "best": epoch})["noise"]["samples_per_s"] == 0.0


def test_figures_have_the_digits_that_they_are_worth():
    (row,) = rows(markdown([measured(0, "1", 6989, 13.37, step=8.123)], KEYS[:1]))
    assert (row["samples/s"], row["wait %"], row["step ms"]) == ("7,000", "13", "8.1")
    (row,) = rows(markdown([measured(0, "1", 6989, 0.9734, apart=0.2)], KEYS[:1]))
    assert (row["samples/s"], row["wait %"]) == ("7,000", "1.0")


def test_a_sweep_over_learning_rates_is_told_by_its_metric_with_mean_and_spread_over_seeds_and_folds():
    best = {
        ("0.1", "0"): 0.90,
        ("0.1", "1"): 0.92,
        ("0.01", "0"): 0.95,
        ("0.01", "1"): 0.97,
        ("1", "0"): 0.5,
        ("1", "1"): 0.6,
    }
    jobs = [
        measured(i, "0", 1000 + i, 1.0, best=value, settings={"optimizer.lr": lr, "dataset.fold": fold})
        for i, ((lr, fold), value) in enumerate(best.items())
    ]
    text = markdown(jobs, ["optimizer.lr", "dataset.fold"])
    metric, speed = text.split("\n\n")[:2]
    assert metric == "**Best validation accuracy: lr 0.01** · 0.960 ± 0.014 in epoch 3"
    assert speed.startswith("**Fastest: lr ")
    assert "Mean ± standard deviation of the jobs of each setting; sweep.csv has each job." in text
    assert [(row["job"], row["lr"], row["rank"], row["validation accuracy"]) for row in rows(text)] == [
        ("0, 1", "0.1", "2", "0.910 ± 0.014"),
        ("2, 3", "0.01", "1", "0.960 ± 0.014"),
        ("4, 5", "1", "3", "0.550 ± 0.071"),
    ]  # fmt: skip
    assert list(rows(text)[0])[3:5] == ["validation accuracy", "best epoch"]
    assert Report(["optimizer.lr", "dataset.fold"]).best(jobs).settings == "lr 0.01"
    assert "**Best validation accuracy: the only setting** · 0.81 ± 0.20" in markdown(jobs, ["seed", "dataset.fold"])


def with_seeds(best: list[tuple[str, str, float]]) -> list[JobResult]:
    return [
        measured(i, "0", 1000 + i, 1.0, best=value, settings={"optimizer.lr": lr, "seed": seed})
        for i, (lr, seed, value) in enumerate(best)
    ]


def test_the_metric_of_a_job_that_is_given_twice_counts_once():
    once = [("0.1", "1", 0.90), ("0.1", "2", 0.92)]
    (group,) = groups(with_seeds([*once, once[0]]), ["optimizer.lr", "seed"])
    assert sorted(group.values("best")) == [0.90, 0.92]
    assert len(group.values("samples_per_s")) == 3  # a rate was measured again
    assert "0.910 ± 0.014" in markdown(group.results, ["optimizer.lr", "seed"])


def test_the_headline_says_which_setting_its_figures_are_of():
    near = [
        ("0.1", "1", 0.90),
        ("0.1", "2", 0.94),
        ("1", "1", 0.91),
        ("1", "2", 0.95),
        ("9", "1", 0.1),
        ("9", "2", 0.1),
    ]
    text = markdown(with_seeds(near), ["optimizer.lr", "seed"])
    assert text.startswith("**Best validation accuracy: lr 0.1** · 0.920 ± 0.028 in epoch 3 · 2 settings are equal")
    text = markdown(with_seeds(near[:4]), ["optimizer.lr", "seed"])
    assert text.startswith("**Best validation accuracy: lr 0.1** · 0.920 ± 0.028 in epoch 3 · all 2 settings are equal")


def test_the_table_says_which_epoch_was_the_best_counted_from_1():
    (row,) = rows(markdown([measured(0, "1", 1000, 1.0, best=0.97)], KEYS[:1]))
    assert (row["validation accuracy"], row["best epoch"]) == ("0.97", "3")


def test_jobs_that_are_too_short_for_a_rate_are_told_by_their_metric():
    epoch = {"validation/accuracy": 0.7, "validation/loss": 0.5}
    short = JobResult(number=0, settings={}, status="FINISHED", command="python src/train.py",
                   **figures({"history": [epoch], "best": epoch, "best_epoch": 1}))  # fmt: skip
    assert markdown([short], KEYS[:1]).startswith("**Best validation accuracy: workers ** · 0.7 in epoch 1\n\n```sh")


def test_a_sweep_of_failures_says_so():
    assert markdown([RESULTS[3]], KEYS).startswith("**No job finished.**")


def test_the_csv_has_full_precision_under_the_keys_own_names(tmp_path: Path):
    Report(KEYS).write(RESULTS, tmp_path)
    with (tmp_path / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["loader.num_workers"] for row in rows] == ["0", "0", "10", "10", "2", "2"]
    assert float(rows[5]["wait_pct"]) == 1e4 / 3500.0
    assert rows[3]["status"] == "FAILED"
    assert rows[1]["validation/accuracy"] == "0.95"


def test_several_seeds_give_mean_and_spread():
    results = [result(i, "0", "32", rate, best, seed=str(i)) for i, (rate, best) in enumerate([(100, 0.8), (300, 0.9)])]
    (group,) = groups(results, ["seed"])
    assert (group.mean("samples_per_s"), group.mean("best")) == (200.0, pytest.approx(0.85))
    assert group.spread("samples_per_s") == pytest.approx(np.std([100, 300], ddof=1))
    assert "0.850 ± 0.071" in markdown(results, ["seed"])


def test_a_cold_first_epoch_does_not_count():
    epochs = [{"loader/samples_per_s": rate, "loader/wait_pct": 5.0} for rate in (1.0, 10.0, 30.0, 20.0)]
    measured = figures({"history": epochs, "phases_s": {"wait": 2.0, "compute": 6.0, "evaluation": 9.0}, "best": {}})
    assert measured["samples_per_s"] == 20.0


@pytest.mark.parametrize("measure", MEASURES)
def test_two_swept_keys_make_a_heat_map_with_its_numbers_in_order(measure):
    figure = sweep_figure(groups(RESULTS, KEYS), measure)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "2", "10"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["32", "128"]
    best = {
        "samples_per_s": "most: 4,000 with workers 10, batch size 32",
        "wait_pct": "least: 5.0 with workers 0, batch size 128, or with 3 more",  # equal within the noise
    }
    assert figure.get_suptitle().replace("\n", " ").endswith(best[measure])
    assert [text.get_text() for text in axes.texts][-1] == "none"  # the job that failed


@pytest.mark.parametrize("keys", [KEYS[:1], ["optimizer"], ["optimizer", *KEYS]], ids=["line", "bars", "long"])
def test_other_sweeps_have_a_picture_too(keys):
    results = [
        result(i, str(i), str(32 * i), 100.0 + 10 * i, optimizer=name) for i, name in enumerate(["adamw", "sgd", "own"])
    ]
    figure = sweep_figure(groups(results, keys), "samples_per_s")
    assert "most: 120 with" in figure.get_suptitle()
    assert "do not compare" not in figure.get_suptitle()


@pytest.mark.parametrize("keys", [["optimizer"], ["optimizer", *KEYS], ["optimizer", KEYS[0]]])
def test_a_sweep_over_more_than_the_loader_has_a_picture_of_its_metric(keys):
    results = [result(i, str(i), "32", 100.0, 0.8 + i / 100, optimizer=name) for i, name in enumerate(["adamw", "sgd"])]
    pictures = Report(keys).figures(results)
    assert list(pictures) == ["metric", "samples_per_s", "wait_pct"]
    title = pictures["metric"].get_suptitle()
    assert title.startswith("validation accuracy\nbest: 0.81 with optimizer sgd")
    assert list(Report(KEYS).figures(results)) == ["samples_per_s", "wait_pct"]
