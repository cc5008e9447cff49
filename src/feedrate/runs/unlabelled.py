"""Samples without labels: all sample files below a folder, read by the dataset class of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset

from feedrate.cli.targets import build, locate, takes
from feedrate.config import DatasetConfig, common_keys, nearby
from feedrate.dataset import Data, IDs, Labels, Packed, list_IDs, without_transform
from feedrate.dataset.labels import Targets
from feedrate.dataset.shards.shard_index import NAME as INDEX
from feedrate.dataset.subset import SubsetWithIDs
from feedrate.errors import UserError


def unlabelled(node: Mapping[str, Any], root: Path, data: Data, seed: int) -> Data:
    """`data` with the samples of another folder as its only partition, 'train', whose labels are all 0.

    All files below `root` with the suffix of the class (for packed data .pt or .npy) are samples, except hidden ones;
    links to folders are followed, and IDs are sorted. For packed data `root` may also be a folder of shards.
    """
    common = common_keys(DatasetConfig)
    node = without_transform(node)
    if "cache" in node:  # prediction writes nothing beside the files
        node = {**node, "cache": "none"}
    if str(node["_target_"]) == "feedrate.dataset.Packed":
        if (root / INDEX).is_file():
            return replace(data, partition={"train": _packed({**node, "root": str(root)}, root)}, source=str(root))
        reader = "TensorFiles" if _listing(root, ".pt") else "ArrayFiles"
        node = {"_target_": f"feedrate.dataset.{reader}", **{k: v for k, v in node.items() if k in common}}
    path = str(node["_target_"])
    target = locate(path, "dataset")
    suffix = getattr(target, "suffix", ".pt")
    if "list_IDs" not in takes(target) or suffix is None:
        raise UserError(f"dataset.root={root}: {path} does not read sample files by ID; leave dataset.root out")
    names = IDs(_listing(root, suffix))
    if not len(names):
        raise UserError(f"dataset.root={root}: there is no sample file *{suffix} in this folder or below it")
    labels = Labels(names, _zeros(data.targets, len(names)), known=False)
    injected = {"list_IDs": names, "labels": labels, "seed": seed, "partition": "test"}
    dataset = build({**node, "root": str(root)}, "dataset", injected, common)
    if list_IDs(dataset) is None:
        dataset = SubsetWithIDs(dataset, range(len(names)), names)
    return replace(data, partition={"train": dataset}, source=str(root))


def _packed(node: Mapping[str, Any], root: Path) -> SubsetWithIDs:
    """The samples of every partition of a folder of shards, one after the other."""
    partition = Packed.catalog(root).partition
    parts = [build(node, "dataset", {"partition": name}, common_keys(DatasetConfig)) for name in partition]
    whole: ConcatDataset[Any] = ConcatDataset(parts)
    return SubsetWithIDs(whole, range(len(whole)), [ID for ids in partition.values() for ID in ids])


def _zeros(targets: Targets, count: int) -> Tensor:
    if targets.task == "classification":
        return torch.zeros(count, dtype=torch.int64)
    return torch.zeros(count) if targets.num_outputs == 1 else torch.zeros(1, targets.num_outputs).expand(count, -1)


def _listing(root: Path, suffix: str) -> list[str]:
    """IDs of the sample files below a folder, sorted; each folder is listed once, so loops of links end."""
    if not root.is_dir():
        raise UserError(f"dataset.root={root}: no such folder{nearby(root)}")

    def fail(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be listed ({error.strerror}); check its permissions")

    found: list[str] = []
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, onerror=fail, followlinks=True):
        seen.add(os.path.realpath(folder))
        folders[:] = sorted(name for name in folders if os.path.realpath(f"{folder}/{name}") not in seen)
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(folder).relative_to(root)
        found += [str(below / name) for name in files if name.endswith(suffix) and not name.startswith(".")]
    return sorted(name.removesuffix(suffix) for name in found)
