"""A run as a person starts it, read back from MLflow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from at_once import at_once

ROOT = Path(__file__).resolve().parents[2]
METRICS = {
    "train/loss", "train/accuracy", "train/learning_rate", "validation/loss", "validation/accuracy",
    "loader/samples_per_s", "loader/mb_per_s", "loader/wait_pct", "loader/wait_ms_p50", "loader/wait_ms_p95",
    "loader/wait_ms_p99", "loader/first_batch_s", "loader/load_ms_p50", "loader/load_ms_p95",
    "loader/worker_busy_pct", "loader/transfer_ms_p50", "compute/step_ms_p50", "loader/ready_batches",
    "loader/ceiling_samples_per_s", "compute/ceiling_samples_per_s", "loader/efficiency_pct", "loader/fetch_pct",
    "loader/decode_pct", "loader/transform_pct", "loader/collate_pct", "loader/handover_pct",
}  # fmt: skip


@pytest.fixture(scope="module")
def tracked(tmp_path_factory, digits):
    """One good and one failed run in a store of their own, started from another folder."""
    folder = tmp_path_factory.mktemp("tracked")
    common = [
        f"tracking.uri={folder}/store.db",
        f"tracking.artifacts={folder}/artifacts",
        f"dataset.root={digits}",
        "trainer.max_epochs=2",
    ]
    extra = {
        "good": ["loader.num_workers=2"],
        "bad": ["optimizer.lr=1e30", "optimizer=sgd", "scheduler=none", "model=mlp"],
    }

    def run(name):
        return subprocess.run(
            [sys.executable, str(ROOT / "src/train.py"), *common, *extra[name], f"hydra.run.dir={folder}/{name}"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=600,
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
        )

    runs = at_once({name: partial(run, name) for name in extra})
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/store.db")
    experiment = client.get_experiment_by_name("feedrate")
    found = {r.info.run_id: r for r in client.search_runs([experiment.experiment_id])}
    return SimpleNamespace(folder=folder, runs=runs, client=client, found=found)


def test_no_store_lies_elsewhere(tracked):
    assert {path.name for path in tracked.folder.iterdir()} >= {"store.db", "good", "bad"}
    for folder in (tracked.folder, ROOT, ROOT / "src"):  # MLflow's own default is mlflow.db in the current folder
        assert not (folder / "mlflow.db").exists(), folder


def test_terminal_MLflow_and_summary_give_the_same_verdict_with_the_same_figures(tracked):
    summary = json.loads((tracked.folder / "good/summary.json").read_text())
    verdict, run = summary["verdict"], tracked.found[summary["run_id"]]
    assert verdict["kind"] == run.data.tags["feedrate.verdict"]
    first, reason = f"{verdict['kind']:<13} {verdict['waited']}\n", " ".join(verdict["reason"].split())
    for text in (tracked.runs["good"].stdout, run.data.tags["mlflow.note.content"]):
        assert first in text
        assert reason in " ".join(text.split())
    assert set(verdict["figures"]) == {
        "samples_per_s", "wait_pct", "loader_ceiling_samples_per_s", "compute_ceiling_samples_per_s", "efficiency_pct"
    }  # fmt: skip
    for name, value in verdict["figures"].items():
        if value not in (0.0, 100.0):
            assert run.data.metrics[f"verdict/{name}"] == pytest.approx(value, rel=1e-5)
    remedy = verdict["remedies"][0]["override"] if verdict["remedies"] else "none"
    assert run.data.tags["feedrate.remedy"] == remedy


def test_a_finished_run_has_its_timeline_beside_it_and_as_an_artifact(tracked):
    summary = json.loads((tracked.folder / "good/summary.json").read_text())
    beside = json.loads((tracked.folder / "good/timeline.json").read_text())
    kept = {item.path for item in tracked.client.list_artifacts(summary["run_id"])}
    assert "timeline.json" in kept
    assert {event["name"] for event in beside["traceEvents"]} >= {"load", "step"}


def test_a_finished_run_has_every_metric_at_every_epoch(tracked):
    assert tracked.runs["good"].returncode == 0, tracked.runs["good"].stderr
    summary = json.loads((tracked.folder / "good/summary.json").read_text())
    run = tracked.found[summary["run_id"]]
    assert run.info.status == "FINISHED"
    constant = {name for name in METRICS if {epoch.get(name) for epoch in summary["history"]} in ({0.0}, {100.0})}
    assert set(run.data.metrics) >= (METRICS - constant) | {"loader/wait_pct"}
    assert not set(run.data.metrics) & (constant - {"loader/wait_pct"})
    history = tracked.client.get_metric_history(summary["run_id"], "train/loss")
    assert [(m.step, round(m.value, 3)) for m in history][-1] == (1, round(summary["metrics"]["train/loss"], 3))
    assert [m.step for m in history] == [0, 1]


def test_its_page_has_name_parameters_data_set_note_and_tags(tracked):
    run = tracked.found[json.loads((tracked.folder / "good/summary.json").read_text())["run_id"]]
    assert run.info.run_name.startswith("cnn-digits-w2-b64")
    assert run.data.params["loader.num_workers"] == "2"
    assert run.data.params["dataset"] == "digits"
    assert {d.dataset.name for d in run.inputs.dataset_inputs} == {"digits"}
    assert len(run.inputs.dataset_inputs) == 2
    tags = run.data.tags
    assert "validation accuracy" in tags["mlflow.note.content"]
    assert tags["feedrate.command"].startswith("python src/train.py tracking.uri=")
    assert len(tags["mlflow.source.git.commit"]) == 40
    assert run.data.params["device"].startswith("cpu")
    own = {name for name in tags if not name.startswith("mlflow.")}
    assert own == {f"feedrate.{name}" for name in ("journal", "run_folder", "command", "verdict", "remedy")}


def test_its_artifacts_hold_configuration_pictures_and_weights(tracked):
    run_id = json.loads((tracked.folder / "good/summary.json").read_text())["run_id"]
    names = {a.path for a in tracked.client.list_artifacts(run_id)}
    assert {"config.yaml", "plots", "checkpoints", "summary.json", "classes.json"} <= names
    plots = {a.path for a in tracked.client.list_artifacts(run_id, "plots")}
    shown = ("loss", "throughput", "confusion", "timeline")
    assert plots == {f"plots/{name}.png" for name in shown}
    assert (tracked.folder / "artifacts").is_dir()
    assert not (tracked.folder / "mlruns").exists()


def test_terminal_and_summary_and_mlflow_agree(tracked):
    summary = json.loads((tracked.folder / "good/summary.json").read_text())
    run = tracked.found[summary["run_id"]]
    for name, value in summary["metrics"].items():
        if name in run.data.metrics or value not in (0.0, 100.0):  # left out where it was 0 or 100 all the time
            assert run.data.metrics[name] == pytest.approx(value, rel=1e-5)
    lines = [line for line in tracked.runs["good"].stdout.splitlines() if line.startswith("epoch 2/2")]
    assert len(lines) == 1
    assert f"accuracy {summary['metrics']['validation/accuracy']:.4f}" in lines[0]
    assert f"{summary['metrics']['loader/samples_per_s']:,.0f} samples/s" in lines[0]
    assert f"#/experiments/1/runs/{summary['run_id']}?workflowType=machine_learning" in tracked.runs["good"].stdout
    assert (tracked.folder / "good/train.log").read_text().count("epoch 2/2") == 1
    assert (tracked.folder / "good/.hydra/config.yaml").is_file()


def test_a_failed_run_is_marked_with_its_error(tracked):
    assert tracked.runs["bad"].returncode == 1
    assert "the loss is" in tracked.runs["bad"].stderr
    assert "Traceback" not in tracked.runs["bad"].stderr
    failed = [run for run in tracked.found.values() if run.info.status == "FAILED"]
    assert len(failed) == 1
    assert "the loss is" in failed[0].data.tags["feedrate.error"]
    assert json.loads((tracked.folder / "bad/summary.json").read_text())["status"] == "FAILED"
