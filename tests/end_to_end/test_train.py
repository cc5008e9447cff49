"""The shipped configuration, shrunk and run for real."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from feedrate.errors import UserError

ISSUED = {
    "train/loss", "train/accuracy", "train/learning_rate", "validation/loss", "validation/accuracy",
    "loader/samples_per_s", "loader/mb_per_s", "loader/wait_pct", "loader/wait_ms_p50", "loader/wait_ms_p95",
    "loader/wait_ms_p99", "loader/load_ms_p50", "loader/load_ms_p95", "loader/worker_busy_pct",
    "loader/transfer_ms_p50", "compute/step_ms_p50", "compute/forward_ms", "compute/backward_ms",
    "compute/optimizer_ms",
}  # fmt: skip


def test_a_run_writes_every_metric_digest_and_time_to_its_summary(run_train):
    summary = run_train("loader.batch_size=16")
    assert set(summary["metrics"]) >= ISSUED
    assert summary["status"] == "FINISHED"
    assert summary["epochs"] == 2
    assert len(summary["order_digest"]) == len(summary["data_digest"]) == 64
    assert set(summary["phases_s"]) == {"wait", "transfer", "compute", "evaluation", "checkpoint"}
    assert summary["value"] == summary["best"]["validation/loss"]
    assert not (summary["folder"] / "lock").exists()


def test_a_run_of_a_few_steps_says_its_time_but_neither_a_rate_nor_a_verdict(run_train, caplog, tmp_path):
    with caplog.at_level("INFO", "feedrate"):
        summary = run_train("loader.batch_size=64", "trainer.max_epochs=1")  # 4 steps
    lines = [line for message in caplog.messages for line in message.splitlines() if str(tmp_path) not in line]
    assert lines[0].startswith("cnn on digits: 256 training and 256 validation samples (1, 8, 8), 10 classes, on ")
    assert max(map(len, lines)) <= 100
    assert summary["verdict"] is None
    assert not {name for name in summary["metrics"] if name.startswith(("loader/", "compute/")) and "first" not in name}
    assert "too few steps for a rate or a verdict: 0 of 4 count, 10 are needed; they took" in caplog.text
    assert "samples/s" not in caplog.text
    assert "-bound" not in caplog.text


def test_workers_and_start_method_change_neither_losses_nor_digest(run_train):
    alone = run_train()
    forked = run_train("loader.num_workers=2")
    served = run_train("loader.num_workers=1", "loader.multiprocessing_context=forkserver")
    for other in (forked, served):
        assert other["order_digest"] == alone["order_digest"]
        for name in ("train/loss", "train/accuracy", "validation/loss", "validation/accuracy"):
            assert other["metrics"][name] == alone["metrics"][name]


def test_another_seed_gives_another_order_and_another_result(run_train):
    first, second = run_train("trainer.max_epochs=1"), run_train("trainer.max_epochs=1", "seed=1")
    assert first["order_digest"] != second["order_digest"]
    assert first["metrics"]["train/loss"] != second["metrics"]["train/loss"]


def test_content_digest_is_recorded_when_asked_for(run_train):
    assert len(run_train("loader.content_digest=true", "trainer.max_epochs=1")["content_digest"]) == 64


@pytest.mark.parametrize(
    "overrides",
    [
        ("loader=torch",),
        ("loader=torch", "loader.num_workers=2"),
        ("model=mlp", "optimizer=sgd", "scheduler=one_cycle"),
        ("model=resnet18", "model.width=4", "scheduler=plateau"),
        ("model=simulated", "model.step_ms=1", "scheduler=none"),
        ("trainer.precision=bf16", "trainer.accumulate=3", "trainer.clip_norm=1.0", "trainer.label_smoothing=0.1"),
        ("dataset=generated", "dataset.size=96", "dataset.validation_size=32"),
        ("dataset.mean=0.3", "dataset.std=[0.35]"),
    ],
    ids=" ".join,
)
def test_every_option_of_every_group_trains(run_train, overrides):
    summary = run_train("trainer.max_epochs=1", "loader.batch_size=4", *overrides)
    assert summary["status"] == "FINISHED"
    assert summary["metrics"]["train/loss"] > 0
    assert "loader/samples_per_s" in summary["metrics"]


def test_the_in_memory_baseline_gives_the_same_result_as_files(run_train, digits):
    files = run_train("trainer.max_epochs=1")
    memory = run_train("trainer.max_epochs=1", "dataset=in_memory", f"dataset.root={digits}", "dataset.limit=256")
    assert memory["order_digest"] == files["order_digest"]
    assert memory["metrics"]["validation/loss"] == files["metrics"]["validation/loss"]


@pytest.mark.parametrize("preset", ["one_batch", "overfit", "profile"])
def test_debug_presets_run(run_train, preset):
    overrides = ["trainer.max_epochs=40"] if preset == "overfit" else ["trainer.max_epochs=1"]
    summary = run_train(f"debug={preset}", "dataset.limit=64", *overrides)
    if preset == "overfit":
        assert summary["metrics"]["train/loss"] < 0.1
    if preset == "profile":
        assert json.loads((summary["folder"] / "profile.json").read_text())["traceEvents"]


@pytest.mark.parametrize("name", sorted(p.stem for p in (Path(__file__).parents[2] / "conf/experiment").glob("*.yaml")))
def test_experiments_run_as_they_are_shipped(run_train, name, digits, monkeypatch):
    summary = run_train(f"experiment={name}", "tracking=none", "dataset.limit=64", "trainer.max_epochs=1")
    assert summary["status"] == "FINISHED"


def test_checkpoints_load_without_code_and_hold_what_resuming_needs(run_train):
    folder = run_train()["folder"] / "checkpoints"
    state = torch.load(folder / "last.pt", weights_only=True)
    assert set(state) >= {"model", "optimizer", "schedule", "scaler", "random", "loader", "epoch", "step", "data"}
    assert state["loader"]["position"] == 256
    assert state["epoch"] == 1  # counted from 0
    assert state["step"] == 8
    assert not list(folder.glob(".*"))  # no temporary file is left
    assert (folder / "best.pt").exists()


def test_early_stopping_and_max_steps_end_the_run_and_say_so(run_train):
    stopped = run_train("trainer.early_stopping=1", "trainer.max_epochs=30", "optimizer.lr=0.5", "scheduler=none")
    assert stopped["epochs"] < 30
    assert "stopped early" in stopped["stopped"]
    assert "max_steps=3" in run_train("trainer.max_steps=3")["stopped"]


def test_without_tracking_mlflow_is_not_imported(digits, tmp_path):
    import subprocess
    import sys

    code = (
        f"import sys; sys.path.insert(0, 'src'); sys.argv = ['train.py', 'debug=one_batch',"
        f" 'dataset.root={digits}', 'hydra.run.dir={tmp_path}/run']\n"
        "import runpy\n"
        "try:\n    runpy.run_path('src/train.py', run_name='__main__')\n"
        "finally:\n    print('mlflow' in sys.modules, 'matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False False"


def test_a_failed_run_leaves_a_summary_that_says_why(run_train, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        run_train("dataset=tensor_files", "dataset.root=/nowhere")
    summary = json.loads((tmp_path / "run1" / "summary.json").read_text())
    assert summary["status"] == "FAILED"
    assert "/nowhere" in summary["error"]
