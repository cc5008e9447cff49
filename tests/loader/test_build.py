"""The loaders of a run: one for each partition; settings that torch refuses together are resolved with a note."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader, SequentialSampler

from feedrate.config import ROOT
from feedrate.dataset import Data
from feedrate.dataset.labels import Targets
from feedrate.errors import UserError
from feedrate.loader import SeededLoader, TorchLoader, build_loaders, close_loaders, start_loaders
from feedrate.system.cores import usable_cores
from loader.datasets import Numbers, Whole

CPU = torch.device("cpu")
KINDS = {"feedrate": SeededLoader, "torch": TorchLoader}


def data(train: int = 20, validation: int = 7) -> Data:
    partition = {"train": Numbers(train), "validation": Numbers(validation), "test": Numbers(validation)}
    targets = Targets("regression", None, 1)
    return Data("numbers", partition, targets, (2,), torch.float32, None, None, "", "")


def build(option: str, made_for: Data | None = None, device: torch.device = CPU, **settings: Any) -> dict[str, Any]:
    """The loaders of conf/loader/OPTION.yaml with these settings."""
    node = OmegaConf.to_container(OmegaConf.load(ROOT / f"conf/loader/{option}.yaml"))
    assert isinstance(node, dict)
    return build_loaders({**node, "num_workers": 0, **settings}, made_for or data(), 3, device)


@pytest.mark.parametrize("option", KINDS)
def test_each_partition_has_a_loader_of_the_configured_kind(option: str) -> None:
    loaders = build(option, batch_size=6)
    assert list(loaders) == ["train", "validation", "test"]
    assert {type(loader) for loader in loaders.values()} == {KINDS[option]}
    assert [len(loader) for loader in loaders.values()] == [4, 2, 2]


@pytest.mark.parametrize("option", KINDS)
def test_only_the_training_partition_is_shuffled_and_may_drop_its_last_batch(option: str) -> None:
    loaders = build(option, batch_size=6, shuffle=True, drop_last=True)
    train = [i for _, y in loaders["train"] for i in y.tolist()]
    assert len(train) == len(set(train)) == 18
    assert train != sorted(train)
    for name in ("validation", "test"):
        assert [i for _, y in loaders[name] for i in y.tolist()] == list(range(7))


@pytest.mark.parametrize("option", KINDS)
def test_the_seed_of_the_run_fixes_the_order(option: str) -> None:
    first, second = (torch.cat([y for _, y in build(option)["train"]]) for _ in range(2))
    assert torch.equal(first, second)


def test_the_reference_is_the_unmodified_dataloader() -> None:
    loaders = build("torch", shuffle=False)
    assert type(loaders["train"].loader) is DataLoader
    assert isinstance(loaders["train"].sampler, SequentialSampler)


@pytest.mark.parametrize("option", KINDS)
def test_num_workers_auto_is_the_number_of_usable_cores_and_is_said(
    option: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "feedrate"):
        loaders = build(option, num_workers="auto")
    assert {loader.num_workers for loader in loaders.values()} == {usable_cores()}
    assert caplog.messages == [f"loader.num_workers=auto: {usable_cores()}, the usable cores"]


@pytest.mark.parametrize("option", KINDS)
def test_what_needs_workers_is_set_aside_without_them(option: str) -> None:
    engine = {"engine": "thread"} if option == "feedrate" else {}
    settings = {"prefetch_factor": 4, "multiprocessing_context": "fork", "persistent_workers": True, "timeout": 5}
    loaders = build(option, **settings, **engine)
    assert loaders["train"].timeout == (5 if option == "feedrate" else 0)
    assert all(len(list(loader)) for loader in loaders.values())


@pytest.mark.parametrize("option", KINDS)
def test_the_shipped_configuration_needs_no_note_without_workers(option: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "feedrate"):
        build(option)
    assert caplog.messages == []


@pytest.mark.parametrize("option", KINDS)
def test_with_workers_the_settings_reach_them(option: str) -> None:
    settings = {"prefetch_factor": 4, "multiprocessing_context": "fork", "timeout": 50, "persistent_workers": True}
    loaders = build(option, num_workers=1, **settings)
    train = loaders["train"]
    assert (train.prefetch_factor, train.timeout, train.persistent_workers) == (4, 50, True)
    assert train.multiprocessing_context.get_start_method() == "fork"
    assert len(list(train)) == len(list(train)) == 1
    close_loaders(loaders)


def test_more_workers_than_cores_start_without_a_warning() -> None:
    loaders = build("feedrate", num_workers=usable_cores() + 1, engine="process")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(loaders["train"])) == 1
    close_loaders(loaders)


@pytest.mark.parametrize("option", KINDS)
def test_dropping_the_only_batch_is_an_error_with_the_remedy(option: str) -> None:
    with pytest.raises(UserError) as raised:
        build(option, data(train=20), batch_size=32, drop_last=True)
    assert str(raised.value) == (
        "loader.drop_last=true with loader.batch_size=32 leaves no batch of the 20 training samples; "
        "set loader.batch_size to 20 or less, or loader.drop_last=false"
    )
    assert len(build(option, data(train=20), batch_size=20, drop_last=True)["train"]) == 1
    # a validation partition smaller than a batch is one smaller batch
    assert len(build(option, data(train=20, validation=2), batch_size=20, drop_last=True)["validation"]) == 1


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda", True), ("xpu", True), ("mps", False)])
def test_pin_memory_auto_is_for_devices_that_copy_from_it(device: str, pinned: bool) -> None:
    assert build("torch", device=torch.device(device))["train"].pin_memory is pinned
    assert build("feedrate", device=torch.device(device), pin_memory=False)["train"].pin_memory is False


# ---------------------------------------------------------------------------------------------------------
# engines
# ---------------------------------------------------------------------------------------------------------


def test_inline_with_workers_is_refused_with_the_remedy() -> None:
    with pytest.raises(UserError, match="loader.engine=inline has no workers, .*set loader.num_workers=0"):
        build("feedrate", engine="inline", num_workers=2)


def test_validation_uses_the_engine_of_training_which_is_measured_once(caplog: pytest.LogCaptureFixture) -> None:
    made = data()
    for name in ("train", "validation"):
        made.partition[name] = Whole(20)
    loaders = build("feedrate", made, num_workers=1)
    with caplog.at_level(logging.INFO, "feedrate"):
        start_loaders(loaders, ("train", "validation"))
    assert len(caplog.messages) == 1
    assert loaders["train"].engine == loaders["validation"].engine in ("thread", "process")
    for loader in loaders.values():
        assert len(list(loader)) == 1
    close_loaders(loaders)
