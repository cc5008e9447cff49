"""The shipped options of conf/model build their models, with the shape and the outputs that the data have."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from feedrate.config import ROOT

OPTIONS = ["cnn", "mlp", "resnet18", "simulated"]


@pytest.mark.parametrize("name", OPTIONS)
def test_option_builds_its_model(name: str) -> None:
    cfg = OmegaConf.load(ROOT / "conf" / "model" / f"{name}.yaml")
    model = instantiate(cfg, sample_shape=(1, 8, 8), num_outputs=10)
    assert type(model).__name__.lower() == name
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("file", [ROOT / "conf" / "model" / f"{name}.yaml" for name in OPTIONS], ids=OPTIONS)
def test_option_states_the_defaults_of_the_constructor(file: Path) -> None:
    cfg = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(cfg, dict)
    model = instantiate({"_target_": cfg.pop("_target_")}, sample_shape=(1, 8, 8), num_outputs=2)
    parameters = inspect.signature(type(model)).parameters
    defaults = {k: p.default for k, p in parameters.items() if k not in ("sample_shape", "num_outputs")}
    assert cfg == {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()}
