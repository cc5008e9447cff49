"""From a loader configuration to the train, validation and test loaders of a run."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from feedrate.cli.targets import build
from feedrate.dataset.build import Data
from feedrate.errors import UserError
from feedrate.loader.loader import SeededLoader
from feedrate.loader.torch_loader import with_info
from feedrate.system.cores import usable_cores
from feedrate.system.device import has_streams

log = logging.getLogger("feedrate")
_OURS = "feedrate.loader.Loader"


def build_loaders(node: Mapping[str, Any], data: Data, seed: int, device: torch.device) -> dict[str, Any]:
    """A loader for each partition; only the training partition is shuffled, and only it may drop its last batch."""
    settings = _settled(node, device)
    size = len(data.partition["train"])  # type: ignore[arg-type]
    batch = settings.get("batch_size") or 1
    if settings.get("drop_last") and size < batch:
        raise UserError(
            f"loader.drop_last=true with loader.batch_size={batch} leaves no batch of the {size} training samples; "
            f"set loader.batch_size to {size} or less, or loader.drop_last=false"
        )
    loaders = {}
    for name, dataset in data.partition.items():
        chosen = settings if name == "train" else {**settings, "shuffle": False, "drop_last": False}
        injected = {"dataset": dataset, "seed": seed, "generator": torch.Generator().manual_seed(seed)}
        if chosen["_target_"] == _OURS:
            injected.pop("generator")  # its order comes from the seed
            if chosen.get("pin_memory") and device.index is not None:
                injected["pin_memory_device"] = str(device)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create .* worker processes")  # logged below
            loader = with_info(build(chosen, "loader", injected))
        if name != "train" and isinstance(loader, SeededLoader):
            loader.set_epoch(0, then=0)  # the same samples with the same random numbers each time
        loaders[name] = loader
    return loaders


def start_loaders(loaders: Mapping[str, Any], names: Sequence[str]) -> None:
    """Starts the workers of the named loaders, all with the first one's engine: beside threads, forking is unsafe."""
    first, *others = (loaders[name] for name in names)
    first.start()
    for loader in others:
        loader.engine = first.engine
        loader.start()


def close_loaders(loaders: Mapping[str, Any], at_once: bool = False) -> None:
    """Ends the workers of all loaders, `at_once` in the middle of a sample."""
    for loader in loaders.values():
        loader.close(at_once)


def _settled(node: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The settings as DataLoader accepts them: `auto` resolved, and those for workers off where there are none."""
    settings = dict(node)
    if settings.get("num_workers") == "auto":
        settings["num_workers"] = usable_cores()
        log.info("loader.num_workers=auto: %d, the usable cores", settings["num_workers"])
    if settings.get("pin_memory") == "auto":
        settings["pin_memory"] = has_streams(device)  # only their copies use page-locked memory
    if settings.get("multiprocessing_context") == "auto" or settings.get("engine") == "thread":
        settings["multiprocessing_context"] = None
    if not settings.get("num_workers", 0):
        unused: dict[str, Any] = {"prefetch_factor": None, "multiprocessing_context": None, "persistent_workers": False}
        unused |= {"engine": "inline"} if settings["_target_"] == _OURS else {"timeout": 0}
        settings |= {key: off for key, off in unused.items() if key in settings}
    return settings
