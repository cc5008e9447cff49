"""From a dataset configuration to the datasets of a run, and what a model must know about them.

The one place that knows which arguments a dataset class may ask for. Loaders are built elsewhere.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from feedrate.config import DatasetConfig, common_keys, dataset_keys, resolve_path
from feedrate.dataset.catalog import Catalog
from feedrate.dataset.labels import Targets, read_labels
from feedrate.errors import UserError
from feedrate.targets import build, locate, takes

log = logging.getLogger("feedrate")
LABEL_SAMPLES = 1_000  # samples looked at to learn what the labels of a class without a catalog are
HELD_OUT = 5  # a class that knows no partition keeps every fifth sample for validation


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


def build_data(node: Mapping[str, Any], seed: int) -> Data:
    """The datasets that a configuration node describes.

    A class may have a classmethod `prepare(root)`, which is called once before anything is read. Its constructor gets
    what it names of: `list_IDs` and `labels` (from the folder `dataset.root`), `root`, `partition`, `seed`.

    Raises:
        UserError: the configuration or the folder is wrong.
        SampleError: the first sample cannot be loaded.
    """
    keys = dataset_keys(node)
    path = str(node["_target_"])
    target = locate(path, "dataset")
    root = resolve_path(keys.root) if keys.root is not None else None
    if root is not None and hasattr(target, "prepare"):
        target.prepare(root)
    wanted = takes(target)
    if "list_IDs" in wanted:
        if root is None:
            raise UserError(f"dataset.root is missing: {path} takes list_IDs, which are read from that folder")
        catalog = Catalog.read(root, keys.task, getattr(target, "suffix", ".pt"))
        for note in catalog.notes:
            log.warning("note: %s", note)
        data = _from_catalog(node, keys, catalog, seed)
    else:
        data = _from_class(node, keys, seed, has_partition="partition" in wanted)
    if keys.limit is not None:
        return replace(data, partition={name: _first(part, keys.limit) for name, part in data.partition.items()})
    return data


def list_IDs(dataset: Dataset[Any]) -> Sequence[str] | None:
    """The IDs of a dataset in the order of its indices, or None where it has none."""
    found = getattr(dataset, "list_IDs", None)
    return found if found is not None and not callable(found) else None


def _from_catalog(node: Mapping[str, Any], keys: DatasetConfig, catalog: Catalog, seed: int) -> Data:
    partition = {}
    for name, ids in catalog.partition.items():
        labels = catalog.labels[name]
        injected = {"list_IDs": ids, "labels": labels, "root": str(catalog.root), "partition": name, "seed": seed}
        partition[name] = _checked(build(node, "dataset", injected, common_keys(DatasetConfig)), node)
    first = partition["train"][0][0]
    name = keys.name or catalog.root.name
    return _data(name, partition, catalog.targets, first, keys, catalog.digest, str(catalog.root))


def _from_class(node: Mapping[str, Any], keys: DatasetConfig, seed: int, has_partition: bool) -> Data:
    path = str(node["_target_"])
    injected: dict[str, Any] = {"seed": seed, "root": str(resolve_path(keys.root)) if keys.root else None}
    common = common_keys(DatasetConfig)
    partition: dict[str, Dataset[Any]]
    if has_partition:
        partition = {
            name: _checked(build(node, "dataset", {**injected, "partition": name}, common), node)
            for name in ("train", "validation")
        }
    else:
        whole = _checked(build(node, "dataset", injected, common), node)
        if len(whole) < HELD_OUT:
            raise UserError(
                f"dataset: {path} has {len(whole)} samples; at least {HELD_OUT} are needed to hold some out"
            )
        shuffled = np.random.Generator(np.random.Philox(seed)).permutation(len(whole))
        held = np.sort(shuffled[: len(whole) // HELD_OUT])
        kept = np.sort(shuffled[len(whole) // HELD_OUT :])
        partition = {"train": Part(whole, kept.tolist()), "validation": Part(whole, held.tolist())}
        log.info("note: %s takes no `partition`, so a fifth of its samples (by seed) is held out for validation", path)
    train = partition["train"]
    first, _ = _pair(train[0], path)
    targets = _targets_of(train, keys, path)
    text = (
        repr(sorted((k, v) for k, v in node.items()))
        + f",{seed},"
        + ",".join(str(_size(p)) for p in partition.values())
    )
    digest = hashlib.sha256(text.encode()).hexdigest()
    return _data(keys.name or path.rpartition(".")[2].lower(), partition, targets, first, keys, digest, path)


def _data(
    name: str,
    partition: Mapping[str, Dataset[Any]],
    targets: Targets,
    first: Any,
    keys: DatasetConfig,
    digest: str,
    source: str,
) -> Data:
    X = torch.as_tensor(first)
    if keys.num_outputs is not None:
        if targets.num_outputs > keys.num_outputs:
            raise UserError(f"dataset.num_outputs={keys.num_outputs}: the labels need at least {targets.num_outputs}")
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
    if len(values) not in {1, shape[0] if shape else 1}:
        raise UserError(
            f"dataset.{key} has {len(values)} values, a sample has shape {shape}: give one, or one per channel"
        )
    return values


def _targets_of(train: Dataset[Any], keys: DatasetConfig, path: str) -> Targets:
    """What the labels of a class without a catalog are, from a sample of them where the class does not say."""
    size = _size(train)
    step = max(1, size // LABEL_SAMPLES)
    stated = getattr(train, "num_outputs", None) or keys.num_outputs
    picked = range(0, size, step)[:1] if stated and keys.task != "auto" else range(0, size, step)[:LABEL_SAMPLES]
    if stated:
        picked = picked[:16]  # enough to tell classes from numbers
    values = [_plain(_pair(train[i], path)[1]) for i in picked]
    try:
        targets, _ = read_labels({"train": values}, {"train": [str(i) for i in picked]}, keys.task)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if targets.task == "regression":
        return targets
    if any(type(value) is not int or value < 0 for value in values):
        raise UserError(f"{path}: y must be a class index (0, 1, ...), a float or a vector; it is {values[0]!r}")
    outputs = stated or max(values) + 1
    if not stated and len(picked) < size:
        log.info(
            "note: %d classes, as the labels of %d samples show; dataset.num_outputs states it", outputs, len(picked)
        )
    return Targets("classification", tuple(range(outputs)), int(outputs))


def _plain(y: Any) -> Any:
    if isinstance(y, (Tensor, np.ndarray, np.generic)):
        return y.tolist()
    return list(y) if isinstance(y, tuple) else y


def _pair(sample: Any, path: str) -> tuple[Any, Any]:
    if not isinstance(sample, (tuple, list)) or len(sample) != 2:
        raise UserError(f"dataset: {path} returns {type(sample).__name__}; __getitem__ must return the pair (X, y)")
    return sample[0], sample[1]


def _checked(dataset: Any, node: Mapping[str, Any]) -> Any:
    missing = [name for name in ("__len__", "__getitem__") if not hasattr(dataset, name)]
    if missing:
        raise UserError(
            f"dataset: {node['_target_']} has no {' and no '.join(missing)}; a map-style dataset needs both"
        )
    if len(dataset) == 0:
        raise UserError(f"dataset: {node['_target_']} has no samples; its __len__ returned 0")
    return dataset


def _size(dataset: Dataset[Any]) -> int:
    return len(dataset)  # type: ignore[arg-type]


def _first(dataset: Dataset[Any], count: int) -> Dataset[Any]:
    return Part(dataset, range(min(count, _size(dataset))))


class Part(Subset[Any]):
    """Some samples of a dataset, with the IDs and paths of those samples."""

    def __init__(self, dataset: Dataset[Any], indices: Sequence[int]) -> None:
        super().__init__(dataset, indices)
        ids = list_IDs(dataset)
        if ids is not None:
            self.list_IDs: Sequence[str] | None = [ids[i] for i in indices]
        else:
            self.list_IDs = [str(i) for i in indices]
        if hasattr(dataset, "path"):
            self.path = dataset.path
