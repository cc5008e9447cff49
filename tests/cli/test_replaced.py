"""A class that replaces a shipped option's begins with its own defaults, and what it is given is said."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from feedrate.errors import UserError


def settings(summary: dict[str, Any]) -> dict[str, Any]:
    """Those of the optimizer and its state's schedule, as the checkpoint has them."""
    state = torch.load(summary["folder"] / "checkpoints/last.pt", weights_only=True)
    return {**state["optimizer"]["param_groups"][0], **{f"schedule.{k}": v for k, v in state["schedule"].items()}}


@pytest.fixture
def notes(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="feedrate")
    return caplog


def test_a_class_in_an_experiment_begins_with_its_own_defaults_and_keeps_what_the_file_says(run_train, notes):
    kept = settings(run_train("experiment=own_classes", "trainer.max_epochs=3", "dataset.limit=128"))
    assert (kept["initial_lr"], kept["betas"], kept["momentum_decay"]) == (0.002, [0.9, 0.999], 0.004)
    assert kept["weight_decay"] == 0.01  # in the file, though it is what adamw has, too
    assert kept["schedule.last_epoch"] == 3  # a scheduler of torch steps after each epoch, not after each step
    assert kept["lr"] == pytest.approx(0.002 * 0.1**3)
    said = [text for text in notes.messages if " replaces " in text]
    assert said == [
        "note: optimizer._target_=torch.optim.NAdam replaces optimizer=adamw: its own defaults are used "
        "(lr=0.002, betas=[0.9, 0.999])",
        "note: scheduler._target_=torch.optim.lr_scheduler.StepLR replaces scheduler=cosine: its own "
        "defaults are used (interval=epoch)",
    ]


def test_what_is_typed_holds_for_a_class_that_is_typed(run_train, notes):
    kept = settings(
        run_train(
            "optimizer._target_=torch.optim.RMSprop",
            "optimizer.lr=0.003",
            "scheduler=none",
            "model=mlp",
            "+optimizer.momentum=0.5",
            "trainer.max_epochs=1",
            "dataset.limit=64",
        )
    )
    assert (kept["lr"], kept["momentum"], kept["weight_decay"]) == (0.003, 0.5, 0)


def test_a_shipped_class_may_take_the_place_of_another_option(run_train, notes):
    overrides = ("optimizer._target_=torch.optim.SGD", "model._target_=feedrate.model.MLP", "scheduler=one_cycle")
    summary = run_train(*overrides, "trainer.max_epochs=1", "dataset.limit=64")
    kept = settings(summary)
    assert (kept["max_lr"], kept["weight_decay"], kept["nesterov"]) == (0.001, 0, False)  # max_lr: ${optimizer.lr}
    assert "replaces model=cnn: its own defaults are used (dropout=0.2, hidden=[512, 512])" in notes.text


def test_keys_of_the_option_that_the_class_needs_are_carried_over_and_said(run_train, notes, digits):
    overrides = ("model=mlp", "dataset._target_=feedrate.dataset.TensorFiles", "model._target_=own_models.Needy")
    run_train(*overrides, f"dataset.root={digits}", "trainer.max_epochs=1", "dataset.limit=64")
    said = "its own defaults are used (dropout=0.0); carried over, as they are needed: model.hidden=[512, 512]"
    assert f"replaces model=mlp: {said}" in notes.text


def test_a_class_that_cannot_be_imported_is_named(run_train):
    with pytest.raises(UserError, match=r"optimizer._target_=nowhere.Adam: cannot be imported"):
        run_train("optimizer._target_=nowhere.Adam")


def test_a_configuration_that_is_kept_in_the_run_folder_holds_what_the_run_had(tmp_path):
    from omegaconf import OmegaConf

    from feedrate.cli.launch import plain
    from saved_run import composed_with_hydra

    written = tmp_path / "config.yaml"
    with composed_with_hydra("train", "optimizer._target_=torch.optim.RMSprop", "scheduler=one_cycle") as config:
        OmegaConf.save(config, written)
        resolved = plain(config, written)
    kept = OmegaConf.load(written)
    assert OmegaConf.to_container(kept.optimizer) == resolved["optimizer"]
    assert resolved["optimizer"] == {"_target_": "torch.optim.RMSprop", "lr": 0.01, "weight_decay": 0}
    assert OmegaConf.to_container(kept.scheduler)["max_lr"] == "${optimizer.lr}"
    assert resolved["scheduler"]["max_lr"] == 0.01


def test_another_loader_keeps_what_every_loader_has():
    from feedrate.cli.launch import plain
    from saved_run import composed_with_hydra

    with composed_with_hydra("train", "loader._target_=torch.utils.data.DataLoader") as config:
        kept = plain(config)["loader"]
    assert kept["batch_size"] == 64
    assert not {"engine", "content_digest"} & set(kept)  # Feedrate's alone
