"""tune.batch_size=true doubles the batch until something is too small for it, and names what."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from feedrate.config import TrainerConfig
from feedrate.dataset import build_data
from feedrate.trainer.bed import Bed, Setting
from feedrate.trainer.largest import Largest, largest_batch

MB = 1_000_000


class Takes:
    """Takes a megabyte for each sample while it trains, of a device that has so many."""

    def __init__(self, device_mb: float = float("inf")) -> None:
        self.device_mb, self.tried = device_mb, list[int]()

    def __call__(self, batch_size: int) -> bool:
        self.tried.append(batch_size)
        np.ones(batch_size * MB, dtype=np.uint8)
        return batch_size <= self.device_mb


def test_it_never_goes_beyond_the_number_of_samples() -> None:
    takes = Takes()
    assert largest_batch(takes, 3, 20, None, 60) == Largest(12, "there are 20 samples")
    assert takes.tried == [3, 6, 12]


def test_a_batch_that_memory_would_not_hold_is_not_tried() -> None:
    takes = Takes()
    found = largest_batch(takes, 16, 10_000, 300 * MB, 60)
    assert found.batch_size == takes.tried[-1]
    assert found.batch_size in (64, 128)  # 256 MB are more than 80 % of 300 MB; the allocator may keep some
    assert "of main memory" in found.ended_by


def test_a_device_whose_memory_is_too_small_keeps_the_last_one_that_fits() -> None:
    assert largest_batch(Takes(40), 8, 10_000, None, 60) == Largest(32, "the device's memory is too small for 64")


def test_the_time_for_it_ends_it() -> None:
    assert largest_batch(Takes(), 8, 10_000, None, 0) == Largest(8, "there is no time to try 16")


@pytest.fixture
def bed(digits, monkeypatch: pytest.MonkeyPatch) -> Bed:
    from omegaconf import OmegaConf

    from feedrate.launch import CONF

    def conf(name: str) -> dict:
        return dict(OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml")))

    data = build_data({"_target_": "feedrate.dataset.Digits", "root": str(digits)}, 0)
    config = TrainerConfig(**{**conf("trainer/default"), "device": "cpu"})
    parts = conf("loader/feedrate"), conf("model/mlp"), conf("optimizer/adamw")
    return Bed(config, data, *parts, 0, torch.device("cpu"))


def test_a_real_model_trains_on_the_size_that_is_found(bed: Bed) -> None:
    found = largest_batch(bed.fits, 256, 1433, None, 60)
    assert found == Largest(1024, "there are 1,433 samples")
    assert bed.node["batch_size"] == 1024


def test_when_the_device_has_no_memory_for_a_batch_the_former_size_stays(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = bed.step

    def short_of_memory(X: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if len(X) > 300:
            raise torch.OutOfMemoryError("as the backward pass of a GPU does")
        return step(X, y)

    monkeypatch.setattr(bed, "step", short_of_memory)
    assert largest_batch(bed.fits, 128, 1433, None, 60) == Largest(256, "the device's memory is too small for 512")
    assert bed.node["batch_size"] == 256


def test_the_order_digest_is_that_of_any_setting(bed: Bed) -> None:
    found = {
        bed.digests(setting.overrides, 5) for setting in (Setting(0), Setting(2, 4, "thread"), Setting(1, 2, "process"))
    }
    assert len(found) == 1
    ((order, content),) = found
    assert (len(order), len(content)) == (64, 64)
    assert bed.digests({}, 4)[0] != order
