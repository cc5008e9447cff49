"""Whole runs on an accelerator: train, resume, evaluate, predict and tune, in every precision and on every engine."""

from __future__ import annotations

import csv
import signal
from pathlib import Path

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

import evaluate
import predict
import tune
from feedrate.system.signals import Interrupted
from saved_run import call, compose, with_config
from stops import stop_at_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator"),
]
ROOT = Path(__file__).resolve().parents[2]
WORKERS = {
    "inline": ("loader.num_workers=0",),
    "thread": ("loader.num_workers=1", "loader.engine=thread"),
    "process": ("loader.num_workers=1", "loader.engine=process"),
    "torch": ("loader=torch", "loader.num_workers=1"),
}


@pytest.mark.parametrize(
    ("engine", "precision", "more"),
    [
        ("inline", "32", ()),
        ("thread", "bf16", ("trainer.clip_norm=1", "trainer.accumulate=2")),
        ("process", "fp16", ("trainer.clip_norm=1", "trainer.accumulate=2", "optimizer=sgd")),
        ("torch", "fp16", ("model=mlp",)),
    ],
)
def test_a_run_learns_what_it_learns_on_the_cpu(run_train, caplog, engine, precision, more):
    caplog.set_level("INFO", "feedrate")
    same = ("loader.batch_size=16", "model.dropout=0", *more)
    found = run_train(*same, *WORKERS[engine], f"trainer.precision={precision}")
    expected = run_train(*same, "trainer.device=cpu")
    assert f"10 classes, on {torch.accelerator.current_accelerator()}" in caplog.text
    near = pytest.approx(expected["metrics"]["validation/loss"], rel=1e-4 if precision == "32" else 0.1)
    assert found["metrics"]["validation/loss"] == near
    if engine != "torch":
        assert found["order_digest"] == expected["order_digest"]


def test_a_run_that_was_broken_off_goes_on_evaluates_and_predicts(run_train, tmp_path, monkeypatch):
    settings = ("model=mlp", "loader.batch_size=32", "trainer.precision=fp16")  # 8 steps an epoch; dropout is on
    whole = run_train(*settings)
    with monkeypatch.context() as patched:
        stop_at_step(patched, 11, signal.SIGTERM)
        with pytest.raises(Interrupted):
            run_train(*settings)
    resumed = run_train(*settings, f"trainer.resume={tmp_path}/run2")
    for name in ("train/loss", "validation/loss"):
        assert [epoch[name] for epoch in resumed["history"]] == [epoch[name] for epoch in whole["history"]]

    folder = with_config(whole)
    metrics = call(evaluate.main, "evaluate", f"run={folder}", "tracking=none", "trainer.precision=fp16")
    best = {name: value for name, value in whole["best"].items() if name.startswith("validation/")}
    assert metrics == pytest.approx(best, rel=1e-3)
    count = call(predict.main, "predict", f"run={folder}", f"output={tmp_path}/out.csv", "tracking=none")
    with Path(tmp_path / "out.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == count == 256


def test_the_loader_is_tuned(digits, tmp_path, capsys, monkeypatch):
    config = compose("tune", [f"dataset.root={digits}", "model=mlp", "tune.budget_s=6", "tune.trial_s=0.2",
                              "tune.batch_size=true",
                              f"tune.output={tmp_path}/tuned.yaml"], return_hydra_config=True)  # fmt: skip
    HydraConfig.instance().set_config(config)
    monkeypatch.setattr("sys.argv", ["tune.py"])
    with open_dict(config):
        del config["hydra"]
    try:
        tune.main(config)
    finally:
        HydraConfig.instance().cfg = None
    output = capsys.readouterr().out
    assert "settings tried" in output


def test_the_benchmark_for_a_real_one_runs(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    small = {"BATCH": 8, "IMAGE": (3, 32, 32), "COPY_MB": 1, "STEPS": 3, "REPEATS": 1, "STEP_MS": (1.0,)}
    small |= {"SECONDS": 0.1, "ENGINES": (("inline", 0), ("thread", 1)), "SAMPLES": 256, "MODEL": "mlp"}
    for name, value in small.items():
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr(gpu.Busy, "__call__", lambda self, ms, products=0: None)
    monkeypatch.setattr("torch.compile", lambda model: model)
    tables = gpu.run()
    assert tables.count("|---") == 3
    assert "bf16, compiled" in tables
