"""The report of a search from plain results: best trial, what mattered, CSV, pictures."""

from __future__ import annotations

import csv
from dataclasses import replace

from feedrate.reporting.report import SearchReport, objective
from feedrate.reporting.results import JobResult

KEYS = ["optimizer.lr", "loader.batch_size", "model"]


def trial(number: int, value: float | None, status: str = "FINISHED", error: str = "") -> JobResult:
    return JobResult(
        number=number, settings=dict(zip(KEYS, [f"0.00{number + 1}234567", str(16 * number + 16), "mlp"], strict=True)),
        command=f"python src/train.py trial={number}", status=status, error=error, objective=value,
        samples_per_s=None if value is None else 1000.0 + number, wait_pct=5.0,
    )  # fmt: skip


RESULTS = [
    trial(0, 0.8), trial(1, 0.95), trial(2, 0.99, "PRUNED"), trial(3, None, "FAILED", "it\nfailed"), trial(4, 0.7),
]  # fmt: skip


def report(metric: str = "validation/accuracy", direction: str = "maximize", keys: list[str] = KEYS) -> SearchReport:
    return SearchReport(keys, metric, direction)


def test_the_best_trial_is_a_finished_one_and_stands_first_with_its_command():
    text = report().table(RESULTS)
    assert text.startswith(
        "**Best trial: lr 0.002235, batch size 32, model mlp** · validation accuracy 0.95, the largest"
    )
    assert "of 5 trials (3 finished, 1 pruned, 1 failed)" in text
    assert "python src/train.py trial=1\n" in text
    assert "- trial 3 FAILED: it failed" in text
    assert "lr 0.005235" in report(direction="minimize").table(RESULTS).splitlines()[0]


def fast(number: int, workers: str, rate: float, cores: float = 2.0) -> JobResult:
    return JobResult(
        number=number, settings={"loader.num_workers": workers}, command=f"python src/train.py trial={number}",
        status="FINISHED", objective=rate, samples_per_s=rate, wait_pct=1.0, step_ms=8.0, free_cores=cores,
    )  # fmt: skip


def test_of_a_search_for_speed_the_best_trial_is_the_cheapest_of_those_within_the_noise():
    search = report("loader/samples_per_s", keys=["loader.num_workers"])
    found = [fast(0, "4", 1020.0), fast(1, "1", 1000.0), fast(2, "0", 500.0)]
    text = search.table(found)
    assert text.startswith(
        "**Best trial: workers 1** · loader samples per s 1,000, the cheapest of 2 that are equal within the noise, of "
    )
    assert "do not compare" in search.table([fast(0, "4", 1020.0), fast(1, "1", 1000.0, cores=1.0)])


def test_the_best_epoch_is_named_counted_from_1():
    text = report().table([replace(trial(0, 0.8), best_epoch=12), trial(1, 0.7)])
    assert "validation accuracy 0.8 in epoch 12, the largest of 2 trials" in text
    assert "| best epoch |" in text


def test_a_search_of_failures_says_so():
    assert report().table([RESULTS[3]]).startswith("**No trial finished** (1 failed).")


def test_a_short_table_has_the_best_trials():
    text = report().table(RESULTS, rows=2)
    assert "The 2 best of 5; sweep.csv has all." in text
    assert [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")][2:] == ["1", "0"]


def test_the_csv_has_every_digit_and_no_column_twice(tmp_path):
    def written(search: SearchReport) -> list[str]:
        search.write(RESULTS, tmp_path)
        return (tmp_path / "sweep.csv").read_text().splitlines()

    (first, *_) = csv.DictReader(written(report()))
    assert (first["optimizer.lr"], first["validation/accuracy"], first["samples_per_s"]) == (
        "0.001234567",
        "0.8",
        "1000.0",
    )
    header = written(report("loader/samples_per_s"))[0].split(",")
    assert "loader/samples_per_s" in header
    assert len(set(header)) == len(header)


def test_rates_are_medians_without_the_cold_epoch_and_the_rest_is_the_best_epochs():
    summary = {
        "history": [{"loader/samples_per_s": rate, "validation/loss": 1.0} for rate in (1.0, 30.0, 10.0, 20.0)],
        "best": {"validation/loss": 0.5, "loader/samples_per_s": 1.0},
    }
    assert objective(summary, "loader/samples_per_s") == 20.0
    assert objective(summary, "validation/loss") == 0.5
    assert objective(summary, "validation/lost") is None
