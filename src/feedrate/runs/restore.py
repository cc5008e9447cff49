"""Restores a saved run: its data, a loader, and its model with weights."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from feedrate.cli.targets import check_targets
from feedrate.config import ROOT, resolve_path, timeout_of
from feedrate.dataset import Data, build_data
from feedrate.errors import UserError
from feedrate.loader import build_loaders, close_loaders, start_loaders
from feedrate.runs.provenance import has_commit
from feedrate.runs.restore_config import SavedRunConfig
from feedrate.runs.saved import RESTORED, SavedRun, find_saved
from feedrate.runs.unlabelled import unlabelled
from feedrate.tracking.tracker import COMMIT_TAG
from feedrate.trainer import checkpoint
from feedrate.trainer.assemble import build_model, load_weights
from feedrate.trainer.device import choose_precision, set_up_device
from feedrate.trainer.forward import Forward
from feedrate.trainer.state import data_of

log = logging.getLogger("feedrate")
_GROUPS = ("dataset", "loader", "model")  # all that is built of a run's configuration


@dataclass(frozen=True)
class OpenedRun:
    """A saved run with its data, a loader of one partition, and its model in evaluation mode."""

    saved: SavedRun
    data: Data
    partition: str
    loader: Any
    forward: Forward
    epoch: int
    about: Mapping[str, Any]  # run id, checkpoint and epoch (from 1), for a person


@contextmanager
def opened(config: SavedRunConfig, *, other_samples: bool = False) -> Iterator[OpenedRun]:
    """Opens the run that the configuration names; its loader is closed at the end.

    With `other_samples` the samples are all files of config.dataset.root, with or without labels.
    """
    changes = {g: keys for g, keys in config.changes().items() if not (other_samples and g == "dataset")}
    saved = find_saved(config.source(), config.tracking.uri).with_changes(changes)
    path, state = load_checkpoint(saved, config.weights)
    trainer = saved.trainer
    device = set_up_device(trainer, saved.seed)
    if other_samples:
        data, partition = open_folder(saved, state, str(config.dataset.root), config.allow), "train"
    else:
        moved = config.dataset.root is not None
        data = open_data(saved, state, config.allow, config.other_data, prepare=not moved)
        partition = config.partition or ("test" if "test" in data.partition else "validation")
        if partition not in data.partition:
            raise UserError(f"partition={partition}: {data.name} has none; it has {', '.join(data.partition)}")
    # the partition's own order; its workers start now, before the device is used
    node = {**saved.config["loader"], "shuffle": False, "drop_last": False}
    loaders = {partition: build_loaders(node, data, saved.seed, device)[partition]}
    loaders[partition].set_epoch(0, then=None)  # the same random numbers as in every validation of the run
    start_loaders(loaders, (partition,))
    try:
        model = load_model(saved, state, data, device)
        precision = choose_precision(trainer.precision, device)
        forward = Forward(model, data, device, precision, channels_last=trainer.channels_last)
        about = {"run_id": saved.run_id, "checkpoint": path.name, "epoch": state["epoch"] + 1}
        samples = "all samples" if other_samples else partition
        log.info("%s, epoch %d, on %s of %s", path, about["epoch"], samples, data.name)
        yield OpenedRun(saved, data, partition, loaders[partition], forward, state["epoch"], about)
    finally:
        close_loaders(loaders)


def load_checkpoint(saved: SavedRun, weights: str) -> tuple[Path, dict[str, Any]]:
    """The checkpoint of a run ('best' or 'last', unless the run's name was a checkpoint) and the state in it."""
    path = saved.checkpoint or saved.folder / "checkpoints" / f"{weights}.pt"
    if not path.is_file() and saved.recorded is not None:
        path = saved.recorded.download(f"checkpoints/{weights}.pt", saved.folder) or path
    if not path.is_file():
        other = "last" if weights == "best" else "best"
        raise UserError(f"{path}: there is no such checkpoint; try weights={other}")
    try:
        state = checkpoint.load(path)
    except Exception as error:  # damaged and foreign files fail in many ways
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].removeprefix(f"{path}: ")
        raise UserError(f"{path}: cannot be read as a checkpoint of Feedrate: {reason}") from error
    return path, state


def open_data(
    saved: SavedRun, state: Mapping[str, Any], allow: Collection[str], other_data: bool, *, prepare: bool = True
) -> Data:
    """The run's datasets, checked for allowed targets and, without `other_data`, for the digest of the run's data."""
    _check_nodes(saved, allow)
    timeout = timeout_of(saved.config["loader"])
    data = build_data(saved.config["dataset"], saved.seed, prepare=prepare, timeout=timeout)
    if data.digest != state["data_digest"]:
        then, now = str(state["data_digest"])[:12], data.digest[:12]
        text = f"the data is not that of the run (digest {then} then, {now} now)"
        if not other_data:
            raise UserError(f"{data.source}: {text}\nGive the run's data, or accept this with other_data=true")
        log.info("note: %s", text)
    return data


def open_folder(saved: SavedRun, state: Mapping[str, Any], root: str, allow: Collection[str]) -> Data:
    """All samples of another folder as the partition 'train' of data with the run's task, classes and shapes."""
    _check_nodes(saved, allow)
    return unlabelled(saved.config["dataset"], resolve_path(root), data_of(state["data"]), saved.seed)


def load_model(saved: SavedRun, state: Mapping[str, Any], data: Data, device: torch.device) -> nn.Module:
    """The model with its weights, in evaluation mode; raises UserError if they do not fit."""
    model = build_model(saved.config["model"], data, device, saved.trainer.channels_last)
    load_weights(model, state["model"])
    return model.eval()


def _check_nodes(saved: SavedRun, allow: Collection[str]) -> None:
    """Raises UserError unless all classes are allowed, as those in this repository's files are for its own runs."""
    tags = saved.recorded.tags if saved.recorded is not None else {}
    here = saved.folder.is_relative_to(ROOT) and not saved.folder.is_relative_to(RESTORED)
    own = here or has_commit(str(saved.summary.get("commit") or tags.get(COMMIT_TAG)))
    check_targets({group: saved.config.get(group) for group in _GROUPS}, allow, own=own)
