"""Samples without labels: every sample file below a folder, read by the dataset class of a run.

Folders with a catalog of partitions and labels are read by feedrate.dataset.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset

from feedrate.config import DatasetConfig, common_keys
from feedrate.dataset import Data, IDs, Labels, Packed, list_IDs, without_transform
from feedrate.dataset.labels import Targets
from feedrate.dataset.part import Part
from feedrate.dataset.shard_index import NAME as INDEX
from feedrate.errors import UserError
from feedrate.targets import build, locate, takes


def facts_of(data: Data) -> dict[str, Any]:
    """What a model must know of its data, as plain values for a checkpoint: predictions then need no training data."""
    classes = data.targets.classes
    return {
        "name": data.name,
        "task": data.targets.task,
        "classes": list(classes) if classes is not None else None,
        "num_outputs": data.targets.num_outputs,
        "sample_shape": list(data.sample_shape),
        "sample_dtype": str(data.sample_dtype).removeprefix("torch."),
        "mean": data.mean,
        "std": data.std,
    }


def data_of(facts: Mapping[str, Any]) -> Data:
    """The opposite of `facts_of`: data without samples."""
    classes = facts["classes"]
    targets = Targets(facts["task"], tuple(classes) if classes is not None else None, facts["num_outputs"])
    dtype = getattr(torch, facts["sample_dtype"])
    return Data(
        facts["name"],
        {},
        targets,
        tuple(facts["sample_shape"]),
        dtype,
        facts["mean"],
        facts["std"],
        digest="",
        source="",
    )


def unlabelled(node: Mapping[str, Any], root: Path, data: Data, seed: int) -> Data:
    """`data` with the samples of another folder as its only partition, 'train', whose labels are all 0.

    Args:
        node: of the dataset, whose targets are allowed.
        root: every file below it that ends as the class's samples do is a sample; IDs are sorted. For a run on shards
            a folder of shards, all of whose samples are meant, or one of .pt or .npy files.

    Raises:
        UserError: there is no such folder or no sample in it, or the class does not read files by ID.
    """
    node = without_transform(node)
    if "cache" in node:  # prediction leaves nothing beside the files
        node = {**node, "cache": "none"}
    if str(node["_target_"]) == "feedrate.dataset.Packed":
        if (root / INDEX).is_file():
            return replace(data, partition={"train": _all_packed(node, root)}, source=str(root))
        suffix = ".pt" if not root.is_dir() or _listing(root, ".pt") else ".npy"
        kept = {key: value for key, value in node.items() if key in common_keys(DatasetConfig)}
        node = {"_target_": f"feedrate.dataset.{'TensorFiles' if suffix == '.pt' else 'ArrayFiles'}", **kept}
    path = str(node["_target_"])
    target = locate(path, "dataset")
    suffix = getattr(target, "suffix", ".pt")
    if "list_IDs" not in takes(target) or suffix is None:
        raise UserError(f"dataset.root={root}: {path} does not read sample files by ID; leave dataset.root out")
    names = IDs(_listing(root, suffix))
    if not len(names):
        raise UserError(f"dataset.root={root}: there is no sample file *{suffix} in this folder or below it")
    injected = {"list_IDs": names, "labels": Labels(names, _blank(data.targets, len(names))), "seed": seed}
    dataset = build(
        {**node, "root": str(root)}, "dataset", {**injected, "partition": "test"}, common_keys(DatasetConfig)
    )
    if list_IDs(dataset) is None:
        dataset = Part(dataset, range(len(names)), names)
    return replace(data, partition={"train": dataset}, source=str(root))


def _all_packed(node: Mapping[str, Any], root: Path) -> Part:
    """The samples of every partition of a folder of shards, one after the other."""
    catalog = Packed.catalog(root)
    parts = [
        build({**node, "root": str(root)}, "dataset", {"partition": name}, common_keys(DatasetConfig))
        for name in catalog.partition
    ]
    whole: ConcatDataset[Any] = ConcatDataset(parts)
    return Part(whole, range(len(whole)), IDs(ID for ids in catalog.partition.values() for ID in ids))


def _blank(targets: Targets, count: int) -> Tensor:
    if targets.task == "classification":
        return torch.zeros(count, dtype=torch.int64)
    return torch.zeros(count) if targets.num_outputs == 1 else torch.zeros(1, targets.num_outputs).expand(count, -1)


def _listing(root: Path, suffix: str) -> list[str]:
    if not root.is_dir():
        raise UserError(f"dataset.root={root}: no such folder")
    found = []
    for folder, _, files in os.walk(root):
        prefix = "" if Path(folder) == root else f"{Path(folder).relative_to(root).as_posix()}/"
        found += [prefix + name.removesuffix(suffix) for name in files if name.endswith(suffix) and name != suffix]
    return sorted(found)
