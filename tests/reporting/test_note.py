"""The note on a run's page begins with the result and holds the command."""

from __future__ import annotations

from feedrate.reporting.run_summary import duration, headline, number, run_note

METRICS = {
    "validation/accuracy": 0.98214,
    "validation/loss": 0.0712,
    "train/loss": 0.01,
    "loader/samples_per_s": 3210.4,
    "loader/wait_pct": 4.04,
}


def test_the_result_comes_first_then_the_figures_then_the_command() -> None:
    note = run_note(METRICS, command="python src/train.py seed=3", epochs=15, seconds=95, verdict="Compute-bound.")
    lines = note.splitlines()
    assert lines[0] == (
        "**0.9821 validation accuracy** after 15 epochs in 1 min 35 s · 3,210 samples/s · waited 4.04 %"
    )
    assert lines[2:5] == ["```text", "Compute-bound.", "```"]
    assert "| time waited for data | 4.04 % |" in lines
    assert note.endswith("```sh\npython src/train.py seed=3\n```\n")


def test_regression_and_runs_without_a_result_have_a_headline_too() -> None:
    assert headline({"validation/mae": 0.5, "validation/loss": 2.0}, epochs=1) == "**0.5 validation MAE** after 1 epoch"
    assert headline({}, epochs=0) == "No result after 0 epochs"


def test_a_run_that_stopped_says_so_first() -> None:
    note = run_note({}, command="x", epochs=2, error="Loss is NaN\nin step 7.")
    assert note.startswith("**Stopped:** Loss is NaN in step 7.\n")


def test_numbers_and_durations_are_short() -> None:
    values = [0.123456, 4.256, 1234567.0, 3.0, float("nan"), -1500.2]
    assert [number(value) for value in values] == ["0.1235", "4.26", "1,234,567", "3", "nan", "-1,500"]
    assert [duration(value) for value in (1.25, 42.4, 185, 7800)] == ["1.2 s", "42 s", "3 min 5 s", "2 h 10 min"]
