"""The stored study: what it proposes does not depend on interruptions, and eight processes may use it at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from feedrate.reporting.picture import save
from feedrate.trainer.pruning import STORAGE_VARIABLE, TRIAL_VARIABLE, reason_to_prune
from hydra_plugins.feedrate_optuna._settings import checked
from hydra_plugins.feedrate_optuna._study import Study

ROOT = Path(__file__).resolve().parents[2]
SPACE = {
    "optimizer.lr": {"type": "float", "low": 1e-4, "high": 0.1, "log": True},
    "loader.batch_size": {"type": "int", "low": 16, "high": 128, "step": 16},
    "model": {"type": "categorical", "choices": ["mlp", "cnn"]},
}


def study(path: Path, **changes: object) -> Study:
    settings = {
        "study": "s", "metric": "validation/loss", "direction": "minimize", "n_trials": 8, "space": SPACE,
        "sampler": {"name": "TPESampler", "seed": 0, "n_startup_trials": 3}, **changes,
    }  # fmt: skip
    return Study(path, *checked(settings))


def value(params: dict[str, object]) -> float:
    return abs(float(str(params["optimizer.lr"])) - 0.01) * float(str(params["loader.batch_size"]))


def test_an_interrupted_search_proposes_what_an_undisturbed_one_proposes(tmp_path):
    calm, drawn = study(tmp_path / "calm.db"), []
    while (asked := calm.ask()) is not None:
        drawn.append(asked)
        calm.tell(asked[0], value(asked[1]), pruned=asked[0] == 4)
    assert [number for number, _ in drawn] == list(range(8))
    again = []
    while (asked := study(tmp_path / "disturbed.db").ask()) is not None:  # each trial by another process, so to speak
        again.append(asked)
        study(tmp_path / "disturbed.db").tell(asked[0], value(asked[1]), pruned=asked[0] == 4)
    assert again == drawn
    assert len({params["optimizer.lr"] for _, params in drawn}) == 8
    for name, figure in calm.figures().items():
        save(figure, tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) > 300
    axes = calm.figures()["search_keys"].axes[2]
    assert "0.01" in [label.get_text() for label in axes.get_xticklabels()]
    axes.set_xlim(0.003, 0.02)  # within a decade matplotlib labels small ticks too
    axes.figure.canvas.draw()
    assert {label.get_text() for label in axes.get_xticklabels(minor=True)} <= {""}


def test_trials_that_ended_are_kept_and_those_in_the_middle_are_known(tmp_path):
    first = study(tmp_path / "study.db")
    (zero, params), (one, middle) = first.ask(), first.ask()
    first.tell(zero, 0.5, pruned=False)
    second = study(tmp_path / "study.db")
    assert (second.ended(), second.running()) == ({zero: params}, {one: middle})
    second.tell(one, 0.4, pruned=True)
    assert second.ended().keys() == {zero, one}


def test_a_trial_that_failed_is_repeated_once_at_the_next_start_and_not_in_the_same(tmp_path):
    first = study(tmp_path / "study.db", n_trials=2)
    zero, failed = first.ask()
    first.fail(zero)
    one, _ = first.ask()
    first.tell(one, 0.5, pruned=False)
    assert first.ask() is None
    second = study(tmp_path / "study.db", n_trials=2)
    assert second.ask() == (2, failed)
    second.tell(2, 0.3, pruned=False)
    assert second.ask() is None
    third = study(tmp_path / "study.db", n_trials=2)
    assert third.ask() is None
    assert third.ended().keys() == {1, 2}


def test_more_trials_go_on_with_the_study(tmp_path):
    first = study(tmp_path / "study.db", n_trials=1)
    first.tell(first.ask()[0], 0.5, pruned=False)
    assert first.ask() is None
    assert study(tmp_path / "study.db", n_trials=2).ask()[0] == 1


def test_a_job_learns_whether_it_is_poor_and_the_last_epoch_is_never_cut_off(tmp_path, monkeypatch):
    path = tmp_path / "study.db"
    found = study(path, pruner={"name": "MedianPruner", "n_startup_trials": 1, "n_warmup_steps": 0})

    def run(values: list[float]) -> list[str]:
        number, _ = found.ask()
        monkeypatch.setenv(STORAGE_VARIABLE, str(path))
        monkeypatch.setenv(TRIAL_VARIABLE, str(number))
        said = [reason_to_prune(epoch, {"validation/loss": loss}, len(values)) for epoch, loss in enumerate(values)]
        found.tell(number, values[-1], pruned=any(said))
        return said

    assert run([1.0, 0.5, 0.4]) == ["", "", ""]
    assert run([0.9, 0.8, 0.8]) == ["", "stopped by the search: validation/loss=0.8 is poor for epoch 2", ""]
    assert run([0.8, 0.4, 0.9]) == ["", "", ""]


def test_without_a_search_a_run_asks_nobody_and_a_study_that_is_gone_costs_a_warning(tmp_path, monkeypatch, caplog):
    assert reason_to_prune(0, {"validation/loss": 1.0}, 3) == ""
    code = "import sys; import feedrate.trainer.pruning; assert 'optuna' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT / "src")})
    monkeypatch.setenv(STORAGE_VARIABLE, str(tmp_path / "gone.db"))
    monkeypatch.setenv(TRIAL_VARIABLE, "0")
    caplog.set_level("WARNING", logger="feedrate")
    assert reason_to_prune(0, {"validation/loss": 1.0}, 3) == ""
    assert "epoch 1 could not be reported to the search" in caplog.text


REPORTS = """
import sys
import numpy as np

from feedrate.reporting.picture import styled
from feedrate.system.text import number
from feedrate.trainer.pruning import reason_to_prune
sys.stdin.readline()
epochs = int(sys.argv[1])
assert all(reason_to_prune(e, {"validation/loss": 1.0 / (e + 1)}, epochs) == "" for e in range(epochs))
"""


@pytest.mark.slow
def test_eight_processes_report_to_one_study_at_once_and_one_that_is_killed_spoils_nothing(tmp_path):
    path = tmp_path / "study.db"
    found = study(path)
    numbers = [found.ask()[0] for _ in range(8)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", REPORTS, "30" if number < 7 else "1000000"],  # the last does not end by itself
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT / "src"),
                STORAGE_VARIABLE: str(path),
                TRIAL_VARIABLE: str(number),
            },
        )
        for number in numbers
    ]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    while not found._trials()[7].intermediate_values:
        assert processes[7].poll() is None, processes[7].stderr.read()
    processes[7].kill()
    said = [process.communicate(timeout=400)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 7 + [-9], said
    assert not any(said), said
    assert [len(trial.intermediate_values) for trial in found._trials()[:7]] == [30] * 7
