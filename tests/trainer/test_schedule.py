"""When the learning rate changes, and that one which has fallen to nothing is said."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn

from feedrate.trainer.schedule import Schedule

TORCH = "torch.optim.lr_scheduler."
EPOCHS, STEPS = 20, 400


def rates(node: dict[str, Any], steps: int = STEPS, epochs: int = EPOCHS) -> list[float]:
    """The learning rate after each epoch."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule, found = Schedule(node, optimizer, steps, epochs), []
    for _ in range(epochs):
        for _ in range(steps // epochs):
            optimizer.step()
            schedule.step()
        schedule.epoch(1.0)
        found.append(float(optimizer.param_groups[0]["lr"]))
    return found


def test_a_scheduler_steps_after_each_epoch_unless_it_is_told_otherwise():
    node = {"_target_": f"{TORCH}StepLR", "step_size": 1, "gamma": 0.5}
    assert rates(node)[:2] == pytest.approx([0.05, 0.025])
    assert rates({**node, "interval": "step"})[0] == pytest.approx(0.1 * 0.5**20)


@pytest.mark.parametrize(
    ("node", "epoch"),
    [
        ({"_target_": f"{TORCH}StepLR", "step_size": 1, "gamma": 0.5, "interval": "step"}, "step 20 of 400"),
        ({"_target_": f"{TORCH}ExponentialLR", "gamma": 0.1}, "epoch 7 of 20"),
        ({"_target_": f"{TORCH}ReduceLROnPlateau", "patience": 0, "eps": 0.0}, "epoch 8 of 20"),
    ],
)
def test_a_learning_rate_that_falls_below_a_millionth_is_a_warning_once(caplog, node, epoch):
    rates(node)
    assert len(caplog.messages) == 1
    assert caplog.records[0].levelno == logging.WARNING
    assert f"after {epoch}, so hardly anything is learned" in caplog.messages[0]


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "feedrate.trainer.schedule.cosine", "interval": "step", "warmup": 0.05, "final": 0.0},
        {"_target_": f"{TORCH}OneCycleLR", "interval": "step", "max_lr": 0.1},
        {"_target_": f"{TORCH}CosineAnnealingLR", "interval": "step", "T_max": STEPS},
        {"_target_": f"{TORCH}LinearLR", "start_factor": 1e-9, "total_iters": 5},
        {"_target_": f"{TORCH}LinearLR", "start_factor": 1.0, "end_factor": 0.0, "total_iters": EPOCHS},
        {"_target_": f"{TORCH}StepLR", "step_size": 5},
    ],
    ids=["cosine", "one cycle", "torch's cosine", "warm-up", "linear", "steps"],
)
def test_a_schedule_that_rises_from_nothing_or_ends_at_it_is_no_reason_to_warn(caplog, node):
    rates(node)
    assert not caplog.messages
