"""What a run leaves behind is complete, whatever its classes are called and whichever picture fails."""

from __future__ import annotations

import json
import logging
import shutil
import warnings

import pytest

from feedrate.reporting import plots

NAMES = ["Ba$$in", "a$b\nc", "猫"]


@pytest.fixture
def named(digits, tmp_path):
    """A dataset folder of 90 digits of three classes."""
    root = tmp_path / "named"
    root.mkdir()
    known = json.loads((digits / "labels.json").read_text())
    IDs = [ID for ID in sorted(known) if known[ID] < len(NAMES)][:90]
    for ID in IDs:
        shutil.copy(digits / f"{ID}.pt", root)
    (root / "partition.json").write_text(json.dumps({"train": IDs[:60], "validation": IDs[60:]}))
    (root / "labels.json").write_text(json.dumps({ID: NAMES[known[ID]] for ID in IDs}))
    return root


def test_neither_class_names_nor_a_picture_that_fails_keep_the_rest_of_the_record_back(
    named, run_train, make_store, tmp_path, monkeypatch, caplog
):
    from mlflow import MlflowClient

    def fail(*_):
        raise ValueError("no such picture")

    monkeypatch.setattr(plots, "throughput", fail)
    caplog.set_level(logging.INFO, logger="feedrate")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*lyph.*")
        summary = run_train(
            "dataset=tensor_files", f"dataset.root={named}", "model=mlp", "optimizer.lr=0.05", "scheduler=none",
            "trainer.max_epochs=4", "tracking=local", "tracking.system_metrics=false", "tracking.artifacts=null",
            f"tracking.uri={make_store(tmp_path)}",
        )  # fmt: skip
    assert summary["status"] == "FINISHED"
    assert "plots/throughput.png could not be drawn (no such picture)" in caplog.text

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    run_id = summary["run_id"]
    kept = {item.path for folder in ("plots", "checkpoints", "") for item in client.list_artifacts(run_id, folder)}
    assert kept >= {
        *("plots/loss.png", "plots/confusion.png", "checkpoints/best.pt"),
        *("summary.json", "timeline.json", "classes.json"),
    }

    # figures of the best epoch, counted from 1; MLflow's step counts from 0
    best = summary["best_epoch"]
    losses = [epoch["validation/loss"] for epoch in summary["history"]]
    assert best == 1 + losses.index(min(losses))
    assert f"in epoch {best}, the best of 4" in caplog.text
    run = client.get_run(run_id)
    assert run.data.metrics["best/epoch"] == best
    assert run.data.metrics["best/loss"] == pytest.approx(min(losses), rel=1e-5)
    assert client.get_metric_history(run_id, "best/loss")[-1].step == best - 1
    note = run.data.tags["mlflow.note.content"]
    accuracy = summary["history"][best - 1]["validation/accuracy"]
    assert note.startswith(f"**{accuracy:.4g} validation accuracy** in epoch {best}, the best of 4")
    assert "step 0 is epoch 1" in note
    assert note.splitlines()[0].replace("**", "") in caplog.text  # with the same duration: pictures take no part in it
    right = sum(round(row["accuracy"] * row["samples"]) for row in summary["per_class"])
    assert right / 30 == pytest.approx(accuracy)
