"""A trained run is evaluated and used afterwards: it measures what training measured, and joins the same run."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import evaluate
import predict
from feedrate.errors import UserError
from saved_run import CLASSES, call, with_config, with_test_partition

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_evaluating_a_recorded_run_adds_test_metrics_and_files_to_it(run_train, digits, tmp_path, make_store):
    from mlflow import MlflowClient

    root = with_test_partition(digits, tmp_path / "mine")
    tracking = [f"tracking.uri={make_store(tmp_path)}", f"tracking.artifacts={tmp_path}/artifacts"]
    summary = run_train(
        "tracking=local", *tracking, "tracking.system_metrics=false", "dataset=tensor_files", f"dataset.root={root}"
    )
    run_id, folder = summary["run_id"], summary["folder"]

    metrics = call(evaluate.main, "evaluate", f"run_id={run_id}", *tracking)
    assert set(metrics) == {"test/loss", "test/accuracy"}
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test/loss"] == pytest.approx(metrics["test/loss"], rel=1e-5)
    assert len(client.search_runs([run.info.experiment_id])) == 1
    kept = {Path(item.path).name for item in client.list_artifacts(run_id, "evaluate")}
    assert kept == {"test.json", "test_worst.csv", "test_confusion.png"}
    assert kept == {path.name for path in (folder / "evaluate").iterdir()}
    results = json.loads((folder / "evaluate" / "test.json").read_text())
    assert results["samples"] == 24
    assert results["run_id"] == run_id

    worst = table(folder / "evaluate" / "test_worst.csv")
    losses = [float(row["loss"]) for row in worst]
    assert losses == sorted(losses, reverse=True)
    assert sum(losses) / 24 == pytest.approx(metrics["test/loss"], rel=1e-5)  # worst=24 lists all of them here
    assert {row["id"] for row in worst} == set(json.loads((root / "partition.json").read_text())["test"])
    assert {row["label"] for row in worst} <= set(CLASSES.values())

    # the folder is gone: configuration and weights come from MLflow's artifacts
    shutil.rmtree(folder)
    restored = ROOT / "outputs" / "restored" / run_id
    try:
        assert call(evaluate.main, "evaluate", f"run_id={run_id}", *tracking) == metrics
    finally:
        shutil.rmtree(restored, ignore_errors=True)


@pytest.mark.parametrize("loader", ["feedrate", "torch"])
def test_validation_gives_the_figures_of_the_training_bit_for_bit(run_train, loader):
    summary = run_train(f"loader={loader}", "trainer.label_smoothing=0.1", "dataset.std=0.3")
    folder = with_config(summary)
    metrics = call(evaluate.main, "evaluate", f"run={folder}", "tracking=none", "worst=3", "loader.num_workers=1")
    expected = {name: value for name, value in summary["best"].items() if name.startswith("validation/")}
    assert metrics == expected
    worst = table(folder / "evaluate" / "validation_worst.csv")
    assert len(worst) == 3
    assert all(row["id"].startswith("digit-") for row in worst)


def test_predictions_come_by_id_for_a_folder_without_labels(run_train, digits, tmp_path, caplog):
    import pandas

    folder = with_config(run_train())
    new = tmp_path / "new"
    (new / "sub").mkdir(parents=True)
    shutil.copy(digits / "digit-0001.pt", new / "b.pt")
    shutil.copy(digits / "digit-0002.pt", new / "sub" / "a.pt")
    common = [f"checkpoint={folder}/checkpoints/last.pt", "tracking=none"]
    with caplog.at_level("INFO", "feedrate"):
        assert call(predict.main, "predict", *common, f"dataset.root={new}", f"output={tmp_path}/new.csv") == 2
    assert "last.pt, epoch 2, on all samples of " in caplog.text
    rows = {row["id"]: row for row in table(tmp_path / "new.csv")}
    assert list(rows) == ["b", "sub/a"]

    assert call(predict.main, "predict", *common, "partition=train", f"output={tmp_path}/own.parquet") == 256
    own = pandas.read_parquet(tmp_path / "own.parquet").set_index("id")
    for new_id, ID in (("b", "digit-0001"), ("sub/a", "digit-0002")):
        if ID in own.index:
            assert int(rows[new_id]["prediction"]) == own.prediction[ID]
            assert float(rows[new_id]["probability"]) == pytest.approx(own.probability[ID], rel=1e-5)
    assert own.prediction.isin(range(10)).all()

    torch.save(torch.zeros(1, 9, 9, dtype=torch.uint8), new / "odd.pt")
    with pytest.raises(UserError, match="'odd'"):
        call(predict.main, "predict", *common, f"dataset.root={new}", f"output={tmp_path}/odd.csv")
    assert not list(tmp_path.glob("*odd.csv"))


def test_regression_gives_numbers(run_train, tmp_path):
    folder = with_config(run_train("dataset=generated", "dataset.size=64", "dataset.validation_size=16"))
    metrics = call(evaluate.main, "evaluate", f"run={folder}", "tracking=none", "worst=2")
    assert set(metrics) == {"test/loss", "test/mae", "test/rmse"}
    worst = table(folder / "evaluate" / "test_worst.csv")
    assert list(worst[0]) == ["id", "loss", *(f"label_{i}" for i in range(4)), *(f"prediction_{i}" for i in range(4))]
    assert call(predict.main, "predict", f"run={folder}", "tracking=none", f"output={tmp_path}/p.csv") == 16
    with pytest.raises(UserError, match="does not read sample files by ID"):
        call(predict.main, "predict", f"run={folder}", "tracking=none", f"output={tmp_path}/p.csv", "dataset.root=data")


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        (["evaluate"], ["run_id=ID, run=FOLDER or checkpoint=FILE", "none of them is set"]),
        (["evaluate", "run=a", "run_id=b"], ["run_id=b and run=a"]),
        (["evaluate", "run=a", "wrst=3"], ["wrst", "did you mean worst?"]),
        (["predict", "run=a"], ["output is missing"]),
        (["predict", "run=a", "output=p.txt"], ["output=p.txt: must end in .csv or .parquet"]),
        (["compare", "a"], ["two or more runs are compared"]),
    ],
)
def test_a_mistake_is_answered_in_up_to_three_lines(command, parts):
    done = subprocess.run(
        [sys.executable, f"src/{command[0]}.py", *command[1:]], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert 1 <= len(done.stderr.strip().splitlines()) <= 3, done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr
