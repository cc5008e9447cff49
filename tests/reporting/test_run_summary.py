"""A run's page begins with the result, then the verdict, then pictures; it holds the command."""

from __future__ import annotations

from feedrate.reporting.run_summary import headline, run_note

METRICS = {
    "validation/accuracy": 0.98214,
    "validation/loss": 0.0712,
    "train/loss": 0.01,
    "loader/samples_per_s": 3210.4,
    "loader/wait_pct": 4.04,
}


def test_the_result_comes_first_then_verdict_pictures_and_command() -> None:
    note = run_note(
        METRICS,
        command="python src/train.py seed=3",
        epochs=15,
        best_epoch=12,
        seconds=95,
        verdict="compute-bound: nothing to do.",
        pictures="![plots/throughput.png](there)",
        slow=[{"ID": "id-7", "load_ms": 12.34}],
    )
    parts = note.split("\n\n")
    assert parts[0] == (
        "**0.9821 validation accuracy** in epoch 12, the best of 15 · 1 min 35 s · 3,210 samples/s · waited 4.0 %"
    )
    assert parts[1:3] == ["```text\ncompute-bound: nothing to do.\n```", "![plots/throughput.png](there)"]
    assert "id-7 (12.3 ms)" in note
    assert note.endswith("```sh\npython src/train.py seed=3\n```\n")


def test_the_remedy_follows_the_verdict_since_the_page_folds_what_is_further_down() -> None:
    why = "why           the loader makes\n              five"
    verdict = f"input-bound   training waited\n{why}\ntry           this\nnote: memory"
    lines = run_note({}, command="", epochs=0, verdict=verdict).split("```")[1].splitlines()
    assert [line.split(" ")[0] for line in lines] == ["text", "input-bound", "try", "why", "note:"]


def test_regression_and_runs_without_a_result_have_a_headline_too() -> None:
    assert headline({"validation/mae": 0.5, "validation/loss": 2.0}, epochs=1) == "**0.5 validation MAE** after 1 epoch"
    assert headline({}, epochs=0) == "No result after 0 epochs"
