"""Samples without labels: every sample file below a folder, read by the dataset class of a run.

Folders with a catalog of partitions and labels are read by feedrate.dataset.
"""

from __future__ import annotations

import logging
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
from feedrate.errors import UserError, offence

log = logging.getLogger("feedrate")


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
        root: every file below it that ends as the class's samples do is a sample, also below a link to a folder, but
            neither hidden files nor those in hidden folders; IDs are sorted. For a run on shards a folder of shards,
            all of whose samples are meant, or one of .pt or .npy files.

    Raises:
        UserError: there is no such folder or no sample in it, one of its folders or files cannot be read, or the class
            does not read files by ID.
    """
    node = without_transform(node)
    if "cache" in node:  # prediction leaves nothing beside the files
        node = {**node, "cache": "none"}
    if str(node["_target_"]) == "feedrate.dataset.Packed":
        if (root / INDEX).is_file():
            return replace(data, partition={"train": _all_packed(node, root)}, source=str(root))
        suffix = ".pt" if _listing(root, ".pt")[0] else ".npy"
        kept = {key: value for key, value in node.items() if key in common_keys(DatasetConfig)}
        node = {"_target_": f"feedrate.dataset.{'TensorFiles' if suffix == '.pt' else 'ArrayFiles'}", **kept}
    path = str(node["_target_"])
    target = locate(path, "dataset")
    suffix = getattr(target, "suffix", ".pt")
    if "list_IDs" not in takes(target) or suffix is None:
        raise UserError(f"dataset.root={root}: {path} does not read sample files by ID; leave dataset.root out")
    found, hidden = _listing(root, suffix)
    names = IDs(found)
    if hidden:
        log.info("note: hidden files are no samples: %s (%d in all)", ", ".join(map(repr, hidden[:3])), len(hidden))
    if not len(names):
        raise UserError(f"dataset.root={root}: there is no sample file *{suffix} in this folder or below it")
    labels = Labels(names, _blank(data.targets, len(names)), known=False)
    injected = {"list_IDs": names, "labels": labels, "seed": seed}
    dataset = build(
        {**node, "root": str(root)}, "dataset", {**injected, "partition": "test"}, common_keys(DatasetConfig)
    )
    if list_IDs(dataset) is None:
        dataset = SubsetWithIDs(dataset, range(len(names)), names)
    return replace(data, partition={"train": dataset}, source=str(root))


def _all_packed(node: Mapping[str, Any], root: Path) -> SubsetWithIDs:
    """The samples of every partition of a folder of shards, one after the other."""
    catalog = Packed.catalog(root)
    parts = [
        build({**node, "root": str(root)}, "dataset", {"partition": name}, common_keys(DatasetConfig))
        for name in catalog.partition
    ]
    whole: ConcatDataset[Any] = ConcatDataset(parts)
    return SubsetWithIDs(whole, range(len(whole)), IDs(ID for ids in catalog.partition.values() for ID in ids))


def _blank(targets: Targets, count: int) -> Tensor:
    if targets.task == "classification":
        return torch.zeros(count, dtype=torch.int64)
    return torch.zeros(count) if targets.num_outputs == 1 else torch.zeros(1, targets.num_outputs).expand(count, -1)


def _listing(root: Path, suffix: str) -> tuple[list[str], list[str]]:
    """IDs of the sample files below a folder, sorted, and the paths of hidden files with their ending.

    Links to folders are followed, but not into a folder that one is in already.
    """
    if not root.is_dir():
        raise UserError(f"dataset.root={root}: no such folder{nearby(root)}")
    found: list[str] = []
    hidden: list[str] = []
    strange: list[str] = []
    waiting = [("", {_identity(root)})]
    while waiting:
        folder, within = waiting.pop()
        try:
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    name = folder + entry.name
                    at: Any = Path(entry.path) if entry.is_symlink() else entry  # of a broken link or a loop: neither
                    if at.is_dir():
                        if not entry.name.startswith(".") and (one := _identity(at)) not in within:
                            waiting.append((f"{name}/", within | {one}))
                    elif entry.name.startswith("."):
                        hidden += [name] if name.endswith(suffix) else []
                    elif name.endswith(suffix):
                        (found if at.is_file() else strange).append(name.removesuffix(suffix))
        except OSError as error:
            raise UserError(f"{root / folder}: cannot be listed ({error.strerror}); check its permissions") from None
    if strange:
        fault = f"dataset.root={root}: IDs whose ID{suffix} is no regular file (a pipe, a broken link)"
        raise UserError(offence(fault, sorted(strange), "replace or remove them"))
    return sorted(found), sorted(hidden)


def _identity(folder: Any) -> tuple[int, int]:
    """Device and inode of a path or an entry of a listing."""
    status = folder.stat()
    return status.st_dev, status.st_ino
