"""From a dataset configuration to the datasets of a run, and what a model must know about them.

The one place that knows which arguments a dataset class may ask for. Loaders are built elsewhere.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from feedrate.cli.targets import build, locate, takes
from feedrate.config import DatasetConfig, common_keys, dataset_keys, resolve_path
from feedrate.dataset.catalog import Catalog
from feedrate.dataset.formats.pt_file import load_tensor, wasted_bytes
from feedrate.dataset.labels import Targets
from feedrate.dataset.probe import check_outputs, one_line, probe, size_of, targets_of
from feedrate.dataset.rng import sample_seeds
from feedrate.dataset.subset import SubsetWithIDs, held_out, list_IDs
from feedrate.dataset.tensor_files import TensorFiles
from feedrate.errors import UserError

__all__ = ["Data", "build_data", "check_shapes", "list_IDs", "without_transform"]

log = logging.getLogger("feedrate")
HELD_OUT = 5  # a class that knows no partition keeps one of so many samples for validation


@dataclass(frozen=True)
class Data:
    """The datasets of one run.

    Attributes:
        name: as shown in tracking.
        partition: map-style dataset by partition name; 'train' and 'validation' are always there.
        targets: task, classes, number of outputs.
        sample_shape: shape of one X.
        sample_dtype: dtype of one X as loaded; uint8 becomes float32 in [0, 1] on the device.
        mean, std: applied after that, for each channel or for all; None leaves X alone.
        digest: SHA-256 of partition, IDs and labels; for a computed data set, of its configuration.
        source: folder or class, for tracking.
    """

    name: str
    partition: Mapping[str, Dataset[Any]]
    targets: Targets
    sample_shape: tuple[int, ...]
    sample_dtype: torch.dtype
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    digest: str
    source: str


def build_data(node: Mapping[str, Any], seed: int, *, prepare: bool = True, timeout: float = 0) -> Data:
    """The datasets that a configuration node describes.

    A class may have a classmethod `prepare(root)`, which is called once before anything is read, and `suffix`, the
    ending of its files ('.pt' otherwise; None where samples are no files), or a classmethod `catalog(root, task)` that
    returns partition and labels. Its constructor gets what it names of:
    `list_IDs` and `labels` (from the folder `dataset.root`), `root`, `partition`, `seed`. The key `transform` is for
    the partition 'train' alone.

    Args:
        prepare: False: the folder must hold the data already; nothing is written into it.
        timeout: seconds that a sample may take which is looked at here (loader.timeout), 0 for ever.

    Raises:
        UserError: the configuration or the folder is wrong.
        SampleError: a sample that is looked at cannot be loaded.
        TimedOut: or takes too long.
    """
    keys = dataset_keys(node)
    path = str(node["_target_"])
    target = locate(path, "dataset")
    root = resolve_path(keys.root) if keys.root is not None else None
    if prepare:
        _prepare(target, path, root)
    elif node.get("cache") == "shards":
        node = {**node, "cache": "none"}
    wanted = takes(target)
    if "list_IDs" in wanted:
        if root is None:
            raise UserError(f"dataset.root is missing: {path} takes list_IDs, which are read from that folder")
        own = getattr(target, "catalog", None)  # of a class that knows partition and labels itself, as Packed does
        catalog = own(root, keys.task) if own else Catalog.read(root, keys.task, getattr(target, "suffix", ".pt"))
        for note in catalog.notes:
            log.warning("note: %s", note)
        data = _from_catalog(node, keys, catalog, seed, timeout)
    else:
        data = _from_class(node, keys, seed, timeout, has_partition="partition" in wanted)
    if _has_transform(node):
        log.info("note: dataset.transform is applied to training samples, not to those of validation and test")
    if keys.limit is not None:
        digest = hashlib.sha256(f"{data.digest},{keys.limit}".encode()).hexdigest()
        partition = {name: _first(part, keys.limit) for name, part in data.partition.items()}
        return replace(data, partition=partition, digest=digest)
    return data


def _has_transform(node: Mapping[str, Any]) -> bool:
    return node.get("transform") is not None


def without_transform(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """A dataset node as it holds for samples that are not trained on."""
    if not _has_transform(node):
        return node
    needed = takes(locate(str(node["_target_"]), "dataset")).get("transform")
    kept = {key: value for key, value in node.items() if key != "transform"}
    return {**kept, "transform": None} if needed is not None and needed.default is needed.empty else kept


def check_shapes(data: Data, node: Mapping[str, Any], timeout: float = 0) -> None:
    """That a transform leaves training samples like those of validation and test; reads one sample of each partition.

    Raises:
        UserError: it changes their shape or dtype, so that the model could not be given both.
    """
    if not _has_transform(node):
        return
    for name, part in data.partition.items():
        X = probe(part, 0, str(node["_target_"]), 0, timeout)[0]
        found = f"{tuple(X.shape)} {torch.as_tensor(X).dtype}" if hasattr(X, "shape") else type(X).__name__
        wanted = f"{data.sample_shape} {data.sample_dtype}"
        if found != wanted:
            raise UserError(
                f"dataset.transform makes training samples {wanted}; those of {name}, to which it is not applied, are "
                f"{found}\nDo what all samples need in the files or in the dataset class, and leave shape and dtype as "
                "they are in dataset.transform"
            )


def _prepare(target: Any, path: str, root: Path | None) -> None:
    if not isinstance(inspect.getattr_static(target, "prepare", None), (classmethod, staticmethod)):
        return
    if root is None:
        if "root" in takes(target.prepare):
            raise UserError(
                f"dataset.root is missing: {path}.prepare(root) needs a folder; set it with dataset.root=..."
            )
        return
    try:
        target.prepare(root)
    except UserError:
        raise
    except OSError as error:
        reason = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
        raise UserError(
            f"dataset.root={root}: cannot be prepared ({reason}); name another folder, or mend it"
        ) from error
    except Exception as error:
        raise UserError(f"dataset: {path}.prepare failed with {one_line(error)}") from error


def _from_catalog(node: Mapping[str, Any], keys: DatasetConfig, catalog: Catalog, seed: int, timeout: float) -> Data:
    path = str(node["_target_"])
    node = {**node, "root": str(catalog.root)}
    others = without_transform(node)
    partition = {}
    for name, ids in catalog.partition.items():
        labels = catalog.labels[name]
        injected = {"list_IDs": ids, "labels": labels, "partition": name, "seed": seed}
        own = node if name == "train" else others
        dataset = _checked(build(own, "dataset", injected, common_keys(DatasetConfig)), node)
        if list_IDs(dataset) is None and len(dataset) == len(ids):  # the class does not keep them; errors and order do
            dataset = SubsetWithIDs(dataset, range(len(ids)), ids)
        partition[name] = dataset
    train = partition["train"]
    first, _ = probe(train, 0, path, seed, timeout)
    if catalog.labels["train"].indexed:  # the class looks labels up by ID: workers forked later share the look-up
        for labels in catalog.labels.values():
            labels.index()
    if isinstance(train, TensorFiles) and train.suffix == ".pt":
        _note_views(train)
    return _data(
        keys.name or catalog.root.name, partition, catalog.targets, first, keys, catalog.digest, str(catalog.root), path
    )


def _note_views(train: TensorFiles) -> None:
    """Says when files hold far more than the sample, a slip of the pen that makes loading slow for ever."""
    ID = train.list_IDs[0]
    X = load_tensor(train.path(ID), ID)
    waste = wasted_bytes(X)
    if waste > max(X.nbytes, 4096):
        text = "note: sample %r (%s) uses %s of the %s bytes in its file: it was saved as a view of a larger tensor; "
        text += "torch.save(X.clone(), path) makes the files small and loading fast"
        log.warning(text, ID, train.path(ID), f"{X.nbytes:,}", f"{X.nbytes + waste:,}")


def _from_class(node: Mapping[str, Any], keys: DatasetConfig, seed: int, timeout: float, has_partition: bool) -> Data:
    path = str(node["_target_"])
    common = common_keys(DatasetConfig)
    resolved = {**node, "root": str(resolve_path(keys.root))} if keys.root else node
    others = without_transform(resolved)
    partition: dict[str, Dataset[Any]]
    if has_partition:
        partition = {
            name: _checked(
                build(resolved if name == "train" else others, "dataset", {"seed": seed, "partition": name}, common),
                node,
            )
            for name in getattr(locate(path, "dataset"), "partitions", ("train", "validation"))
        }
        stated = getattr(partition["train"], "num_outputs", None)
    else:
        plain = None
        if _has_transform(node):
            with sample_seeds():  # a class that draws numbers when it is built draws the same ones again
                plain = _checked(build(others, "dataset", {"seed": seed}, common), node)
        whole = _checked(build(resolved, "dataset", {"seed": seed}, common), node)
        stated = getattr(whole, "num_outputs", None)
        if len(whole) < HELD_OUT:
            raise UserError(
                f"dataset: {path} has {len(whole)} samples; at least {HELD_OUT} are needed to hold some out"
            )
        train, validation = held_out(whole, len(whole) // HELD_OUT, seed)
        if plain is not None:
            if len(plain) != len(whole):
                raise UserError(
                    f"dataset: {path} has {len(plain):,} samples without dataset.transform and {len(whole):,} with it; "
                    "both must be the same samples"
                )
            validation = SubsetWithIDs(plain, validation.indices)
        partition = {"train": train, "validation": validation}
        log.info("note: %s takes no `partition`, so a fifth of its samples (by seed) is held out for validation", path)
    first, _ = probe(partition["train"], 0, path, seed, timeout)
    targets = targets_of(partition["train"], keys, stated, path, seed, timeout)
    given = sorted((key, value) for key, value in node.items() if value is not None)
    text = f"{given!r},{seed}," + ",".join(str(size_of(part)) for part in partition.values())
    digest = hashlib.sha256(text.encode()).hexdigest()
    return _data(keys.name or path.rpartition(".")[2].lower(), partition, targets, first, keys, digest, path, path)


def _data(
    name: str,
    partition: Mapping[str, Dataset[Any]],
    targets: Targets,
    first: Any,
    keys: DatasetConfig,
    digest: str,
    source: str,
    path: str,
) -> Data:
    if not isinstance(first, (Tensor, np.ndarray, np.generic, int, float)):
        raise UserError(
            f"dataset: {path} returns X as {type(first).__name__}; a tensor, an array or a number is needed"
        )
    try:
        X = torch.as_tensor(first, dtype=torch.float64 if isinstance(first, float) else None)  # as collated
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"dataset: {path} returns an X of which no tensor can be made ({one_line(error)})") from error
    if not X.is_cpu:
        raise UserError(
            f"dataset: {path} returns an X on {X.device}; samples are loaded on the CPU, and training copies each "
            "batch to the device: leave out .to(...) in __getitem__"
        )
    if X.is_complex():
        raise UserError(
            f"dataset: {path} returns an X of complex numbers ({X.dtype}); real ones are needed: save or return "
            "torch.view_as_real(X), which has real and imaginary part as its last dimension"
        )
    if keys.num_outputs is not None:
        check_outputs("dataset.num_outputs", keys.num_outputs, targets)
        targets = replace(targets, num_outputs=keys.num_outputs)
    shape = tuple(X.shape)
    mean, std = _per_channel("mean", keys.mean, shape), _per_channel("std", keys.std, shape)
    if std is not None and min(std) <= 0:
        raise UserError(f"dataset.std={keys.std}: must be above 0")
    return Data(name, partition, targets, shape, X.dtype, mean, std, digest, source)


def _per_channel(key: str, value: Any, shape: tuple[int, ...]) -> tuple[float, ...] | None:
    if value is None:
        return None
    values = tuple(float(v) for v in value) if isinstance(value, list) else (float(value),)
    if not all(map(math.isfinite, values)):
        raise UserError(f"dataset.{key}={value}: must be finite")
    if len(values) not in {1, shape[0] if shape else 1}:
        raise UserError(
            f"dataset.{key} has {len(values)} values, a sample has shape {shape}: give one, or one per channel"
        )
    return values


def _checked(dataset: Any, node: Mapping[str, Any]) -> Any:
    missing = [name for name in ("__len__", "__getitem__") if not hasattr(dataset, name)]
    if missing:
        raise UserError(
            f"dataset: {node['_target_']} has no {' and no '.join(missing)}; a map-style dataset needs both"
        )
    try:
        size = len(dataset)
    except Exception as error:
        rule = "it must return the number of samples"
        raise UserError(f"dataset: {node['_target_']}.__len__ failed with {one_line(error)}; {rule}") from error
    if size == 0:
        raise UserError(f"dataset: {node['_target_']} has no samples; its __len__ returned 0")
    ids = list_IDs(dataset)
    if ids is not None and len(ids) != size:
        counts = f"{size:,} samples and {len(ids):,} list_IDs"
        raise UserError(f"dataset: {node['_target_']} has {counts}; one for each sample is needed")
    return dataset


def _first(dataset: Dataset[Any], count: int) -> Dataset[Any]:
    return SubsetWithIDs(dataset, range(min(count, size_of(dataset))))
