"""Trials train a real model on a real loader: what they measure, which batch fits, and that no setting changes one."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from feedrate.cli.launch import CONF
from feedrate.config import TrainerConfig
from feedrate.dataset import build_data
from feedrate.system.cores import usable_cores
from feedrate.timing.ceilings import metrics
from feedrate.tuning.max_batch_size import largest_batch
from feedrate.tuning.trial_runner import Setting, TrialRunner
from feedrate.tuning.tuned import compare


@pytest.fixture
def runner(digits: Path) -> TrialRunner:
    def conf(name: str) -> dict[str, Any]:
        return dict(OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml")))

    data = build_data({"_target_": "feedrate.dataset.Digits", "root": str(digits)}, 0)
    config = TrainerConfig(**{**conf("trainer/default"), "device": "cpu"})
    parts = conf("loader/feedrate"), conf("model/mlp"), conf("optimizer/adamw")
    return TrialRunner(config, data, *parts, 0, torch.device("cpu"))


def test_a_real_model_trains_on_the_size_that_is_found(runner: TrialRunner) -> None:
    found = largest_batch(runner.fits, 256, 1433, None, 60)
    assert found == (1024, "there are 1,433 samples")
    assert runner.node["batch_size"] == 1024


def test_when_the_device_has_no_memory_for_a_batch_the_former_size_stays(
    runner: TrialRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = runner.step

    def short_of_memory(X: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if len(X) > 300:
            raise torch.OutOfMemoryError("as the backward pass of a GPU does")
        return step(X, y)

    monkeypatch.setattr(runner, "step", short_of_memory)
    assert largest_batch(runner.fits, 128, 1433, None, 60) == (256, "the device's memory is too small for 512")
    assert runner.node["batch_size"] == 256


def test_a_step_for_which_the_machine_stands_still_does_not_count(
    runner: TrialRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, steps = runner.step, [0]

    def paused(X: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        steps[0] += 1
        if steps[0] == 12:
            time.sleep(2.0)  # above 20 times the median also on a busy machine
        return step(X, y)

    monkeypatch.setattr(runner, "step", paused)
    times, setup = runner.run(Setting(0), 1.0)
    assert times.work.max() > 2e9
    assert not times.steady[times.work.argmax()]
    assert metrics(times, setup)["loader/samples_per_s"] > 1.5 * times.samples.sum() / (times.elapsed.sum() / 1e9)


def test_the_order_digest_is_that_of_any_setting(runner: TrialRunner) -> None:
    found = {runner.digests(setting, 5) for setting in (Setting(0), Setting(2, 4, "thread"), Setting(1, 2, "process"))}
    assert len(found) == 1
    ((order, content),) = found
    assert (len(order), len(content)) == (64, 64)
    assert runner.digests(Setting(0), 4)[0] != order


def test_the_first_batches_are_compared_with_those_without_workers(runner: TrialRunner) -> None:
    runner.node = {**runner.node, "engine": "inline"}  # which excludes the two workers configured
    same = compare(runner, Setting(1, 2, "process"), rate=64.0)
    assert same.endswith("with and without workers")


def test_a_trial_logs_no_notes_on_its_setting(runner: TrialRunner, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "feedrate")
    runner.run(Setting(usable_cores() + 1, engine="thread"), 0.1)
    assert not [record for record in caplog.records if "usable cores" in record.getMessage()]
    assert logging.getLogger("feedrate").isEnabledFor(logging.INFO)
