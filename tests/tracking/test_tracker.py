"""What is recorded is what MLflow's own client reads back from a real store."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from feedrate.config import ROOT
from feedrate.tracking.journal import JOURNAL, SYSTEM, events
from feedrate.tracking.system_metrics import TOGETHER, SystemReadings


def test_parameters_come_back_under_dotted_names_as_yaml_writes_them(track: Any, read: Any) -> None:
    tracker = track()
    tracker.params({"model": "mlp", "loader": {"num_workers": 2, "pin_memory": False, "timeout": None}})
    tracker.params({"model.sizes": [64, 32], "optimizer.lr": 0.001, "odd[0] name!": "x"})
    assert read.get_run(tracker.run_id).data.params == {
        "model": "mlp",
        "loader.num_workers": "2",
        "loader.pin_memory": "false",
        "loader.timeout": "null",
        "model.sizes": "[64, 32]",
        "optimizer.lr": "0.001",
        "odd_0_ name_": "x",
    }


def test_more_parameters_than_one_call_takes_and_longer_ones_than_mlflow_keeps(track: Any, read: Any) -> None:
    tracker = track()
    tracker.params({f"p{number}": number for number in range(250)} | {"long": "y" * 7000})
    data = read.get_run(tracker.run_id).data
    assert len(data.params) == 251
    assert len(data.params["long"]) == 6000


def test_metrics_keep_their_order_steps_and_times_and_are_rounded(track: Any, read: Any, tmp_path: Path) -> None:
    tracker = track()
    for step in range(2500):
        tracker.metrics({"train/loss": 1.23456789 / (step + 1)}, step)
    tracker.metrics({"loader/samples_per_s": 123456.789}, step=3)
    history = read.get_metric_history(tracker.run_id, "train/loss")
    assert [metric.step for metric in history] == list(range(2500))
    times = [
        event["time_ms"] for event, _ in events(tmp_path / "run" / JOURNAL) if "train/loss" in event.get("values", ())
    ]
    assert [metric.timestamp for metric in history] == times
    assert history[0].value == 1.23457
    assert read.get_run(tracker.run_id).data.metrics["loader/samples_per_s"] == 123457


def test_values_that_are_not_finite_are_left_out(track: Any, read: Any) -> None:
    tracker = track()
    tracker.metrics({"train/loss": 1.0}, 0)
    tracker.metrics({"train/loss": math.nan}, 1)
    tracker.metrics({"train/loss": math.inf, "loader/wait_pct": -math.inf}, 2)
    data = read.get_run(tracker.run_id).data
    assert data.metrics == {"train/loss": 1.0}
    assert [metric.step for metric in read.get_metric_history(tracker.run_id, "train/loss")] == [0]


def test_measurements_that_are_0_or_100_all_the_time_are_left_out(track: Any, read: Any) -> None:
    tracker = track()
    for step, late in enumerate((0.0, 0.0, 7.0, 0.0)):
        always = {"loader/fetch_pct": 100.0, "loader/wait_pct": 0.0, "validation/accuracy": 0.0}
        tracker.metrics({**always, "loader/decode_pct": late}, step)
    assert set(read.get_run(tracker.run_id).data.metrics) == {
        "loader/wait_pct", "validation/accuracy", "loader/decode_pct",
    }  # fmt: skip
    history = read.get_metric_history(tracker.run_id, "loader/decode_pct")
    assert [(metric.step, metric.value) for metric in history] == [(0, 0.0), (1, 0.0), (2, 7.0), (3, 0.0)]


def test_the_run_is_named_and_says_where_its_folder_is(track: Any, read: Any, tmp_path: Path) -> None:
    run = read.get_run(track().run_id)
    assert run.info.run_name == "mlp-digits-w2-b64"
    assert run.info.status == "RUNNING"
    assert run.data.tags["feedrate.run_folder"] == str(tmp_path / "run")
    assert read.get_run(track(run_name="my own name").run_id).info.run_name == "my own name"


def test_both_partitions_of_a_data_set_are_recorded_with_their_numbers_of_samples(track: Any, read: Any) -> None:
    import mlflow

    tracker = track()
    digest = "0123456789abcdef" * 4
    tracker.dataset("digits", digest, "train", 1437, "/data/digits")
    tracker.dataset("digits", digest, "validation", 360, "/data/digits")
    found = {
        entry.tags[0].value: (entry.dataset, json.loads(entry.dataset.profile))
        for entry in read.get_run(tracker.run_id).inputs.dataset_inputs
    }
    assert set(found) == {"train", "validation"}
    dataset, profile = found["validation"]
    assert (dataset.name, dataset.digest) == ("digits", "01234567-validation")
    assert profile == {"samples": 360, "partition": "validation", "digest": digest}
    assert mlflow.data.get_source(dataset).uri == "/data/digits"


def test_files_folders_texts_and_pictures_lie_in_the_artifact_folder(
    track: Any, read: Any, database: Path, tmp_path: Path
) -> None:
    from feedrate.reporting.plots import loss_curves

    source = tmp_path / "source"
    source.mkdir()
    (source / "a.txt").write_text("a")
    tracker = track()
    tracker.artifact(source / "a.txt")
    tracker.artifact(source, "folder")
    tracker.text("seed: 3\n", "config/config.yaml")
    tracker.figure(loss_curves({"train/loss": {0: 1.0, 1: 0.5}}), "plots/loss.png")
    tracker.end("FINISHED")
    kept = database.parent / "artifacts" / tracker.run_id / "artifacts"
    assert {str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file()} == {
        "a.txt", "folder/a.txt", "config/config.yaml", "plots/loss.png",
    }  # fmt: skip
    assert {entry.path for entry in read.list_artifacts(tracker.run_id)} == {
        "a.txt",
        "folder",
        "config",
        "plots",
    }


def test_no_password_of_an_address_is_recorded(track: Any, database: Path, tmp_path: Path) -> None:
    secret = "http://ann:hunter2@mlflow.example.org:5000"
    tracker = track()
    tracker.params({"tracking": {"uri": secret}})
    tracker.tags({"feedrate.command": f"python src/train.py tracking.uri={secret}"})
    tracker.note(f"`tracking.uri={secret}`")
    tracker.text(f"uri: {secret}\n", "config.yaml")
    tracker.end("FAILED", f"no answer from {secret}")
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"hunter2" not in path.read_bytes(), path


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_the_first_end_counts_and_the_error_is_kept(track: Any, read: Any, status: str) -> None:
    tracker = track()
    tracker.end(status, "loss is NaN in step 7" if status == "FAILED" else "")
    tracker.end("FINISHED", "too late")
    run = read.get_run(tracker.run_id)
    assert run.info.status == status
    assert run.info.end_time is not None
    assert run.data.tags.get("feedrate.error") == ("loss is NaN in step 7" if status == "FAILED" else None)


def test_the_note_is_the_description_of_the_run_cut_to_what_mlflow_keeps(track: Any, read: Any) -> None:
    tracker = track()
    tracker.note("**0.98**")
    assert read.get_run(tracker.run_id).data.tags["mlflow.note.content"] == "**0.98**"
    tracker.note("x" * 9000)
    assert len(read.get_run(tracker.run_id).data.tags["mlflow.note.content"]) == 8000


def test_even_a_short_run_has_system_metrics(track: Any, read: Any) -> None:
    tracker = track(system_metrics=True)
    tracker.end("FINISHED")
    metrics = read.get_run(tracker.run_id).data.metrics
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= set(metrics)
    assert {"system/process_cpu_cores", "system/process_memory_mb", "system/process_count"} <= set(metrics)
    assert metrics["system/system_memory_usage_megabytes"] > 0


def test_system_metrics_are_counted_on_when_a_run_goes_on(track: Any, read: Any, tmp_path: Path) -> None:
    for number in (1, 2):
        tracker = track(folder=tmp_path / "one", system_metrics=True)
        tracker.end("FINISHED")
        steps = [m.step for m in read.get_metric_history(tracker.run_id, "system/system_memory_usage_percentage")]
        assert steps == list(range(number))


def test_readings_are_taken_when_it_is_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.01")
    readings = SystemReadings(tmp_path, os.getpid())
    readings.take()  # too early
    for _ in range(TOGETHER):
        time.sleep(0.02)
        readings.take()
    assert [event["step"] for event, _ in events(tmp_path / SYSTEM)] == list(range(TOGETHER))


def test_a_model_in_mlflow_form_belongs_to_its_run_and_gives_the_same_output(
    track: Any, read: Any, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    import torch

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(), torch.nn.Linear(12, 3)).train()
    tracker = track(log_model=True)
    tracker.model(module, torch.zeros(2, 3, 2, 2))
    assert module.training
    tracker.end("FINISHED")
    batch = torch.randn(5, 3, 2, 2)  # another batch size than the example's
    torch.testing.assert_close(mlflow.pytorch.load_model(f"runs:/{tracker.run_id}/model")(batch), module.eval()(batch))


def test_a_model_that_cannot_be_exported_is_a_tag_and_not_the_end_of_the_run(track: Any, read: Any) -> None:
    import torch

    class Stubborn(torch.nn.Module):
        def forward(self, X: torch.Tensor) -> torch.Tensor:
            return X if float(X.sum()) > 0 else -X

    tracker = track(log_model=True)
    tracker.model(Stubborn(), torch.ones(2, 3))
    tracker.end("FINISHED")
    run = read.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["feedrate.model_error"]


def test_no_model_is_kept_unless_asked_for(track: Any, read: Any) -> None:
    import torch

    tracker = track()
    tracker.model(torch.nn.Linear(2, 2), torch.zeros(2, 2))
    assert not read.list_artifacts(tracker.run_id)


def test_with_tracking_none_nothing_is_recorded_and_mlflow_is_not_imported() -> None:
    code = """
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from feedrate.tracking import open_tracker, run_name
from feedrate.reporting.run_summary import run_note
settings = SimpleNamespace(uri=None, experiment="feedrate", artifacts=None, log_model=True,
                           system_metrics=True, run_name=None)
tracker = open_tracker(settings, run_name=run_name({"model": "mlp"}), run_folder=Path("run"))
tracker.params({"a": 1}); tracker.tags({"a": "b"}); tracker.metrics({"train/loss": 1.0}, 0)
tracker.dataset("digits", "abc", "train", 1, "/data"); tracker.artifact(Path("x")); tracker.text("x", "x.txt")
tracker.figure(None, "x.png"); tracker.note(run_note({}, command="", epochs=0)); tracker.model(None, None)
tracker.end("FAILED", "why")
assert (tracker.run_id, tracker.url, tracker.experiment_url) == (None, None, None)
print([name for name in ("mlflow", "matplotlib", "sqlalchemy", "pandas") if name in sys.modules])
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert (done.stdout.strip(), done.stderr, done.returncode) == ("[]", "", 0)
