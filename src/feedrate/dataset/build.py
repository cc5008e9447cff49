"""Builds the datasets of a run from a configuration node, and determines what a model must know about them."""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from feedrate.cli.targets import build, locate, takes
from feedrate.config import DatasetConfig, common_keys, resolve_path
from feedrate.dataset.catalog import Catalog
from feedrate.dataset.formats.pt_file import load_tensor, wasted_bytes
from feedrate.dataset.labels import Targets
from feedrate.dataset.probe import check_outputs, one_line, probe, targets_of
from feedrate.dataset.rng import sample_seeds
from feedrate.dataset.subset import SubsetWithIDs, held_out, list_IDs, size_of
from feedrate.dataset.tensor_files import TensorFiles
from feedrate.errors import UserError
from feedrate.validation import validate

__all__ = ["Data", "build_data", "check_shapes", "list_IDs", "without_transform"]

log = logging.getLogger("feedrate")
HELD_OUT = 5  # of a class without `partition`, one of five samples is for validation
Partition = Mapping[str, Dataset[Any]]


@dataclass(frozen=True)
class Data:
    """The datasets of one run.

    Attributes:
        name: for display and tracking.
        partition: map-style dataset by partition name; 'train' and 'validation' are always there.
        targets: task, classes, number of outputs.
        sample_shape: shape of one X.
        sample_dtype: dtype of one X as loaded; uint8 becomes float32 in [0, 1] on the device.
        mean, std: applied after that, per channel or for all; None leaves X unchanged.
        digest: SHA-256 of partition, IDs and labels; for a computed data set, of its configuration.
        source: folder or class, for tracking.
    """

    name: str
    partition: Partition
    targets: Targets
    sample_shape: tuple[int, ...]
    sample_dtype: torch.dtype
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    digest: str
    source: str


def build_data(node: Mapping[str, Any], seed: int, *, prepare: bool = True, timeout: float = 0) -> Data:
    """The datasets of a configuration node; docs/data.md says which parameters and attributes a class may have.

    Args:
        prepare: False skips the class's `prepare(root)`, and writes no cache.
        timeout: seconds per sample that is loaded here (loader.timeout), 0 for no limit.

    Raises:
        UserError: the configuration or the folder is wrong.
        SampleError: a sample cannot be loaded.
        TimedOut: a sample takes too long.
    """
    of_every = {key: value for key, value in node.items() if key in common_keys(DatasetConfig)}
    keys: DatasetConfig = validate(DatasetConfig, of_every, "dataset")
    path = str(node["_target_"])
    target = locate(path, "dataset")
    root = resolve_path(keys.root) if keys.root is not None else None
    if prepare:
        _prepare(target, path, root)
    elif node.get("cache") == "shards":
        node = {**node, "cache": "none"}
    parameters = takes(target)
    if "list_IDs" in parameters:
        if root is None:
            raise UserError(f"dataset.root is missing: {path} takes list_IDs, which are read from that folder")
        own = getattr(target, "catalog", None)
        catalog = own(root, keys.task) if own else Catalog.read(root, keys.task, getattr(target, "suffix", ".pt"))
        for note in catalog.notes:
            log.warning("note: %s", note)
        name, source, digest, targets = catalog.root.name, str(catalog.root), catalog.digest, catalog.targets
        partition = _from_catalog({**node, "root": source}, catalog, seed)
    else:
        resolved = {**node, "root": str(root)} if keys.root else node
        partition, stated = _from_class(resolved, seed, "partition" in parameters)
        name, source = path.rpartition(".")[2].lower(), path
        digest = _digest_of(node, seed, partition)
        targets = targets_of(partition["train"], keys, stated, path, seed, timeout)
    first = _X_of(partition["train"], path, seed, timeout)
    if "list_IDs" in parameters:
        if catalog.labels["train"].indexed:  # the class looks labels up by ID; workers forked later share the index
            for labels in catalog.labels.values():
                labels.index()
        _note_views(partition["train"])
    if _has_transform(node):
        log.info("note: dataset.transform is applied to training samples, not to those of validation and test")
    if keys.num_outputs is not None:
        check_outputs("dataset.num_outputs", keys.num_outputs, targets)
        targets = replace(targets, num_outputs=keys.num_outputs)
    shape = tuple(first.shape)
    mean, std = _per_channel("mean", keys.mean, shape), _per_channel("std", keys.std, shape)
    if std is not None and min(std) <= 0:
        raise UserError(f"dataset.std={keys.std}: must be above 0")
    if keys.limit is not None:
        digest = hashlib.sha256(f"{digest},{keys.limit}".encode()).hexdigest()
        partition = {of: SubsetWithIDs(p, range(min(keys.limit, size_of(p)))) for of, p in partition.items()}
    return Data(keys.name or name, partition, targets, shape, first.dtype, mean, std, digest, source)


def _has_transform(node: Mapping[str, Any]) -> bool:
    return node.get("transform") is not None


def without_transform(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """A dataset node for validation, test and prediction, whose samples are not transformed."""
    if not _has_transform(node):
        return node
    needed = takes(locate(str(node["_target_"]), "dataset")).get("transform")
    kept = {key: value for key, value in node.items() if key != "transform"}
    return {**kept, "transform": None} if needed is not None and needed.default is needed.empty else kept


def check_shapes(data: Data, node: Mapping[str, Any], timeout: float = 0) -> None:
    """Checks that a transform keeps shape and dtype, on one sample of each partition.

    Raises:
        UserError: it changes them.
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
                f"{found}\nKeep shape and dtype in dataset.transform; do what all samples need in the dataset class"
            )


def _prepare(target: Any, path: str, root: Path | None) -> None:
    if not isinstance(inspect.getattr_static(target, "prepare", None), (classmethod, staticmethod)):
        return
    if root is None:
        if "root" in takes(target.prepare):
            raise UserError(f"dataset.root is missing: {path}.prepare(root) needs a folder; set dataset.root=...")
        return
    try:
        target.prepare(root)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"dataset.root={root}: {path}.prepare failed with {one_line(error)}") from error


def _build(node: Mapping[str, Any], **injected: Any) -> Any:
    """An object of the class, checked to be a map-style dataset with samples."""
    path = node["_target_"]
    dataset = build(node, "dataset", injected, common_keys(DatasetConfig))
    if missing := [name for name in ("__len__", "__getitem__") if not hasattr(dataset, name)]:
        raise UserError(f"dataset: {path} has no {' and no '.join(missing)}; a map-style dataset needs both")
    try:
        size = len(dataset)
    except Exception as error:
        rule = "it must return the number of samples"
        raise UserError(f"dataset: {path}.__len__ failed with {one_line(error)}; {rule}") from error
    if size == 0:
        raise UserError(f"dataset: {path} has no samples; its __len__ returned 0")
    ids = list_IDs(dataset)
    if ids is not None and len(ids) != size:
        raise UserError(f"dataset: {path} has {size:,} samples and {len(ids):,} list_IDs; each sample needs one")
    return dataset


def _from_catalog(node: Mapping[str, Any], catalog: Catalog, seed: int) -> Partition:
    partition = {}
    for name, ids in catalog.partition.items():
        own = node if name == "train" else without_transform(node)
        dataset = _build(own, list_IDs=ids, labels=catalog.labels[name], partition=name, seed=seed)
        if list_IDs(dataset) is None and len(dataset) == len(ids):  # the class does not keep them
            dataset = SubsetWithIDs(dataset, range(len(ids)), ids)
        partition[name] = dataset
    return partition


def _note_views(train: Dataset[Any]) -> None:
    """Warns when files hold far more than their sample, which makes loading slow."""
    if not isinstance(train, TensorFiles) or train.suffix != ".pt":
        return
    ID = train.list_IDs[0]
    X = load_tensor(train.path(ID), ID)
    waste = wasted_bytes(X)
    if waste > max(X.nbytes, 4096):
        why = "it was saved as a view of a larger tensor; torch.save(X.clone(), path) makes loading fast"
        log.warning("note: sample %r uses %d of the %d bytes in its file: %s", ID, X.nbytes, X.nbytes + waste, why)


def _from_class(node: Mapping[str, Any], seed: int, has_partition: bool) -> tuple[Partition, Any]:
    """The datasets of a class without a catalog, and its attribute `num_outputs`."""
    path, others = str(node["_target_"]), without_transform(node)
    if has_partition:
        names = getattr(locate(path, "dataset"), "partitions", ("train", "validation"))
        parts = {name: _build(node if name == "train" else others, seed=seed, partition=name) for name in names}
        return parts, getattr(parts["train"], "num_outputs", None)
    plain = None
    if _has_transform(node):
        with sample_seeds():  # so that a constructor that draws random numbers draws the same ones again
            plain = _build(others, seed=seed)
    whole = _build(node, seed=seed)
    if len(whole) < HELD_OUT:
        raise UserError(f"dataset: {path} has {len(whole)} samples; at least {HELD_OUT} are needed to hold some out")
    train, validation = held_out(whole, len(whole) // HELD_OUT, seed)
    if plain is not None:
        validation = SubsetWithIDs(plain, validation.indices)
    log.info("note: %s takes no `partition`; a fifth of its samples (by seed) is for validation", path)
    return {"train": train, "validation": validation}, getattr(whole, "num_outputs", None)


def _digest_of(node: Mapping[str, Any], seed: int, partition: Partition) -> str:
    given = sorted((key, value) for key, value in node.items() if value is not None)
    sizes = ",".join(str(size_of(part)) for part in partition.values())
    return hashlib.sha256(f"{given!r},{seed},{sizes}".encode()).hexdigest()


def _X_of(train: Dataset[Any], path: str, seed: int, timeout: float) -> Tensor:
    """X of the first sample, checked to be a tensor, an array or a number."""
    first, _ = probe(train, 0, path, seed, timeout)
    if not isinstance(first, (Tensor, np.ndarray, np.generic, int, float)):
        kind = type(first).__name__
        raise UserError(f"dataset: {path} returns X as {kind}; a tensor, an array or a number is needed")
    try:
        X = torch.as_tensor(first, dtype=torch.float64 if isinstance(first, float) else None)  # as collated
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"dataset: {path} returns an X of which no tensor can be made ({one_line(error)})") from error
    if not X.is_cpu:
        raise UserError(f"dataset: {path} returns an X on {X.device}; leave out .to(...): batches are copied there")
    if X.is_complex():
        raise UserError(f"dataset: {path} returns complex numbers ({X.dtype}); return torch.view_as_real(X)")
    return X


def _per_channel(key: str, value: Any, shape: tuple[int, ...]) -> tuple[float, ...] | None:
    if value is None:
        return None
    values = tuple(float(v) for v in value) if isinstance(value, list) else (float(value),)
    if len(values) not in {1, shape[0] if shape else 1}:
        count = f"has {len(values)} values, a sample has shape {shape}"
        raise UserError(f"dataset.{key} {count}: give one, or one per channel")
    return values
