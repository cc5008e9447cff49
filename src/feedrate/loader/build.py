"""From a loader configuration to the train, validation and test loaders of a run.

Settings that torch refuses together are sorted out here; what a loader does is in loader.py.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import DataLoader, default_collate

from feedrate.cli.targets import build
from feedrate.dataset.build import Data
from feedrate.dataset.subset import size_of
from feedrate.errors import UserError
from feedrate.loader.device import has_streams
from feedrate.loader.engines.processes import start_method
from feedrate.loader.limits import read_limits
from feedrate.loader.loader import Loader, SeededLoader
from feedrate.loader.open_files import warn_of_open_files
from feedrate.loader.preflight import Pool, Setup, preflight
from feedrate.loader.worker_footprint import NOTHING, inherited, sent
from feedrate.system.cores import usable_cores

log = logging.getLogger("feedrate")


def build_loaders(node: Mapping[str, Any], data: Data, seed: int, device: torch.device) -> dict[str, Any]:
    """A loader for each partition; only the training partition is shuffled, and only it may drop its last batch.

    Raises:
        UserError: no batch would be left.
    """
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
        if chosen["_target_"] == "feedrate.loader.Loader":
            injected.pop("generator")  # its order comes from the seed
            if chosen.get("pin_memory") and device.index is not None:
                injected["pin_memory_device"] = str(device)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create .* worker processes")  # said below
            loaders[name] = build(chosen, "loader", injected)
        if name != "train" and isinstance(loaders[name], Loader):
            loaders[name].set_epoch(0, then=0)  # the same samples with the same random numbers each time
    return loaders


def start_loaders(loaders: Mapping[str, Any], names: Sequence[str], data: Data, later: Sequence[str] = ()) -> None:
    """Starts their workers, all on the engine of the first: it is measured once, and threads would keep the others from
    forking. Before any of them is there, it is said where they will need most of what this machine has free.

    Args:
        later: names of further loaders that there must be room for, too.

    Raises:
        UserError: they would need more than that.
    """
    first = loaders[names[0]]
    used = [loaders[name] for name in names]
    counted = used + [loaders[name] for name in later]
    checkable = all(isinstance(loader, DataLoader) for loader in counted)  # a class of the user's own may be anything

    def check() -> None:
        if text := preflight(_setup(counted, data), read_limits()):
            log.warning("%s", text)

    if isinstance(first, SeededLoader) and checkable:
        if first.engine == "auto":  # to find out, batches are made; threads need no more than any engine does
            preflight(replace(_setup(counted, data), engine="thread"), read_limits())
        first.start(check)
    elif checkable:
        check()
        if first.num_workers and _method(first, "torch") == "fork":
            for loader in used:
                warn_of_open_files(loader.dataset)
    for loader in used:
        if isinstance(loader, SeededLoader) and isinstance(first, SeededLoader) and loader is not first:
            loader.engine = first.engine
        if hasattr(loader, "start"):
            loader.start()


def _setup(loaders: Sequence[DataLoader[Any]], data: Data) -> Setup:
    """What the pre-flight must know of the loaders that are started."""
    first, workers = loaders[0], loaders[0].num_workers
    engine = "torch" if workers else "inline"
    if isinstance(first, SeededLoader):
        engine = first.engine
    y = data.targets.num_outputs if data.targets.task == "regression" else 1
    sample_bytes = math.prod(data.sample_shape) * data.sample_dtype.itemsize + 8 * y
    method = _method(first, engine)
    seen: set[int] = set()
    pools = []
    for loader in loaders:
        parcel = NOTHING
        if engine in ("process", "torch"):
            parcel = inherited(loader.dataset) if method == "fork" else sent(loader.dataset, seen)
        pools.append(Pool(sample_bytes, loader.batch_size or 1, size_of(loader.dataset), parcel))
    return Setup(
        engine,
        workers,
        first.prefetch_factor or 2,
        tuple(pools),
        start_method=method,
        persistent=bool(first.persistent_workers),
        pinned=bool(first.pin_memory) and torch.accelerator.is_available(),
        by_descriptor=torch.multiprocessing.get_sharing_strategy() == "file_descriptor",
        exact=first.collate_fn is default_collate,
    )


def _method(loader: DataLoader[Any], engine: str) -> str:
    """How its workers are started: fork, forkserver or spawn."""
    chosen: Any = loader.multiprocessing_context
    if chosen is None and engine == "process":
        chosen = start_method(loader.num_workers)
    if chosen is None:
        chosen = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    return chosen if isinstance(chosen, str) else str(chosen.get_start_method())


def close_loaders(loaders: Mapping[str, Any], at_once: bool = False) -> None:
    """Ends the workers of all loaders now; see Loader.close."""
    for loader in loaders.values():
        if hasattr(loader, "close"):
            loader.close(at_once)
        elif isinstance(loader, DataLoader):
            loader._iterator = None


def _settled(node: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The settings as DataLoader takes them: `auto` decided, and what it refuses without workers set aside."""
    settings = dict(node)
    cores = usable_cores()
    if settings.get("num_workers") == "auto":
        settings["num_workers"] = cores
        log.info("loader.num_workers=auto: %d, the usable cores", cores)
    workers = settings.get("num_workers", 0)
    if workers > cores:
        log.info("note: loader.num_workers=%d on %d usable cores", workers, cores)
    if settings.get("pin_memory") == "auto":
        settings["pin_memory"] = has_streams(device)  # page-locked memory serves only their copies
    if settings.get("multiprocessing_context") == "auto":
        settings["multiprocessing_context"] = None
    if workers and settings.get("engine") == "thread" and settings.get("multiprocessing_context") is not None:
        log.info("note: not used by threads: loader.multiprocessing_context=%s", settings["multiprocessing_context"])
        settings["multiprocessing_context"] = None
    if workers == 0:
        aside: dict[str, Any] = {"prefetch_factor": None, "multiprocessing_context": None, "engine": "auto"}
        if settings.get("_target_") != "feedrate.loader.Loader":
            aside["timeout"] = 0  # torch refuses it
        quiet = (None, "inline")
        said = [f"loader.{key}={settings[key]}" for key, off in aside.items() if settings.get(key) not in (off, *quiet)]
        if said:
            log.info("note: not used without workers: %s", ", ".join(said))
        settings.update({key: off for key, off in aside.items() if key in settings})
        if "persistent_workers" in settings:
            settings["persistent_workers"] = False
    return settings
