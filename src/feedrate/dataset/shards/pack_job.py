"""What is to be packed, and which of it is there already and up to date.

Writing it is pack.py's affair.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from feedrate.config import PackConfig, resolve_path
from feedrate.dataset.build import Data
from feedrate.dataset.probe import probe, probe_again, size_of
from feedrate.dataset.shards.shard import Damaged, Shard
from feedrate.dataset.shards.shard_index import NAME, Index, ShardEntry, Source, names_crc
from feedrate.dataset.shards.shard_writer import Plan, forms_of, source_path
from feedrate.dataset.shards.stale import Fingerprints, catalog_files, sha256_of
from feedrate.dataset.subset import list_IDs
from feedrate.dataset.tensor_files import TensorFiles
from feedrate.errors import UserError

PROBED = 16  # samples of a partition that tell how large one is, and whether it is drawn anew in each epoch
# keys that do not change what a sample is
_ASIDE = ("root", "name", "task", "num_outputs", "mean", "std", "limit", "verify", "cache", "access", "stale")


@dataclass(frozen=True)
class Job:
    """What is to be packed where.

    Attributes:
        index: as it will be, without the shards.
        rows: samples of a shard, by partition.
        plans: all shards.
    """

    root: Path
    data: Data
    seed: int
    index: Index
    rows: Mapping[str, int]
    plans: tuple[Plan, ...]


def root_of(config: PackConfig) -> Path:
    if config.root is not None:
        return resolve_path(config.root)
    source = config.dataset.get("root")
    if source is None:
        raise UserError(
            "root is missing: the dataset has no folder beside which the shards could lie; set it with root=..."
        )
    folder = resolve_path(source)
    return folder.with_name(f"{folder.name}-packed")


def check_root(root: Path) -> None:
    """That the folder is new, empty, or holds shards."""
    if not root.exists():
        return
    if not root.is_dir():
        raise UserError(f"root={root}: is a file; name a new folder")
    if (root / NAME).is_file():
        Index.read(root)
        return
    foreign = [found.name for found in root.iterdir() if not found.name.startswith(".")]
    if foreign:
        shown = ", ".join(sorted(foreign)[:3]) + (", ..." if len(foreign) > 3 else "")
        raise UserError(f"root={root}: holds other files ({shown}; {len(foreign):,} in all); choose a new folder")


def job_of(config: PackConfig, root: Path, data: Data) -> Job:
    target, seed = str(config.dataset["_target_"]), config.seed
    train = data.partition["train"]
    X, y = forms_of(probe(train, 0, target, seed), _ID(train, 0))
    rows = {name: _rows(part, seed, target, config.pack.shard_mb) for name, part in data.partition.items()}
    plans = tuple(
        Plan(name, number, start, min(start + rows[name], size_of(part)))
        for name, part in data.partition.items()
        for number, start in enumerate(range(0, size_of(part), rows[name]))
    )
    folder = resolve_path(config.dataset["root"]) if config.dataset.get("root") else None
    kept = {key: value for key, value in config.dataset.items() if key not in _ASIDE and value is not None}
    if "transform" in kept:  # shards of a version that transformed every partition are out of date
        kept["transform"] = {"train": kept["transform"]}
    settings = hashlib.sha256(json.dumps([kept, seed], sort_keys=True, default=str).encode()).hexdigest()
    suffix = _suffix(train, folder)
    source = Source(target, str(folder) if folder else None, suffix, settings, catalog_files(folder) if folder else {})
    classes, targets = data.targets.classes, data.targets
    index = Index(data.digest, targets.task, classes, targets.num_outputs, X, y, source, {})
    return Job(root, data, seed, index, rows, plans)


def _rows(dataset: Dataset[Any], seed: int, target: str, shard_mb: int) -> int:
    """Samples of a shard, from the size of some of them; refuses a dataset that gives them anew in each epoch."""
    count = size_of(dataset)
    picked = sorted({at * count // min(count, PROBED) for at in range(min(count, PROBED))})
    total = 0
    for index in picked:
        ID = _ID(dataset, index)
        X = torch.as_tensor(probe(dataset, index, target, seed)[0])
        again = torch.as_tensor(probe_again(dataset, index, seed, 1, ID)[0])
        if not _same(X, again):
            raise UserError(
                f"{target} gives sample {ID!r} anew in each epoch (a random transform); packed, every epoch would get "
                "the same draw\nPack it without, and give the transform to dataset=packed as "
                "+dataset.transform._target_=my_package.MyTransform"
            )
        total += X.numel() * X.element_size()
    return max(1, int(shard_mb * 1_000_000 * len(picked) / total)) if total else count


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same bytes; NaN is then equal to itself."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(*(value.contiguous().reshape(-1).view(torch.uint8) for value in (a, b)))


def _suffix(dataset: Dataset[Any], folder: Path | None) -> str | None:
    """What follows ID in the name of a sample's file; None where samples are no files of the folder."""
    ID = _ID(dataset, 0)
    path = source_path(dataset, ID)
    prefix = f"{folder}/{ID}"
    return path.removeprefix(prefix) if path is not None and folder is not None and path.startswith(prefix) else None


def _ID(dataset: Dataset[Any], index: int) -> str:
    names = list_IDs(dataset)
    return str(index) if names is None else str(names[index])


# ---------------------------------------------------------------------------------------------------------
# what is there
# ---------------------------------------------------------------------------------------------------------


def check_source(job: Job) -> None:
    """That shards which are there from before were made of the same dataset."""
    if (job.root / NAME).is_file():
        before, now = Index.read(job.root).source, job.index.source
        if (before.target, before.root) != (now.target, now.root):
            held = f"{before.target} of {before.root}" if before.root else before.target
            raise UserError(f"root={job.root}: holds shards of {held}; choose another root, or remove this folder")


def current(job: Job) -> dict[Plan, ShardEntry | None]:
    """The plans whose shards are there and up to date; with their entry where an index holds it."""
    if not (job.root / NAME).is_file():
        return {}
    before = Index.read(job.root)
    same = (before.X, before.y, before.source.settings, before.source.target) == (
        job.index.X, job.index.y, job.index.source.settings, job.index.source.target,
    )  # fmt: skip
    if not same:
        return {}
    entries = {entry.file: entry for part in before.partition.values() for entry in part.shards}
    found: dict[Plan, ShardEntry | None] = {}
    for plan in job.plans:
        shard = Shard(str(job.root / plan.file), job.index.X)
        try:
            if Path(shard.path).is_file() and _is_current(job, plan, shard, before.digest == job.index.digest):
                entry = entries.get(plan.file)
                whole = entry is not None and Path(shard.path).stat().st_size == entry.bytes
                found[plan] = entry if whole else None
        except (Damaged, UserError):
            continue
    return found


def _is_current(job: Job, plan: Plan, shard: Shard, same_labels: bool) -> bool:
    dataset = job.data.partition[plan.partition]
    names = list_IDs(dataset)
    IDs_ = [str(i) if names is None else names[i] for i in range(plan.start, plan.stop)]
    text, ends = shard.tensor("ID.text").numpy().tobytes(), shard.tensor("ID.ends").tolist()
    if text != "".join(IDs_).encode() or ends != np.cumsum([len(ID.encode()) for ID in IDs_]).tolist():
        return False
    if not same_labels:
        labels = _labels(dataset, plan)
        if labels is None or not torch.equal(labels, shard.tensor("y")):
            return False
    then = Fingerprints(shard)
    for row, ID in enumerate(IDs_):
        path = source_path(dataset, ID)
        had = int(then.size[row]) >= 0
        if had != (path is not None) or (path is not None and then.changed(row, path)):
            return False
    return same_labels or int(then.size[0]) >= 0


def _labels(dataset: Any, plan: Plan) -> Tensor | None:
    """Those of a shard's samples, where they are at hand."""
    indices = torch.arange(plan.start, plan.stop)
    while isinstance(dataset, Subset):
        indices = torch.tensor([dataset.indices[i] for i in indices.tolist()])
        dataset = dataset.dataset
    if type(dataset).__getitem__ is not TensorFiles.__getitem__ or not isinstance(dataset.labels, Tensor):
        return None
    found: Tensor = dataset.labels[indices]
    return found


def entry_of(job: Job, plan: Plan) -> ShardEntry:
    """Of a shard that was written before an interruption."""
    path = job.root / plan.file
    shard = Shard(str(path), job.index.X)
    crc = names_crc(*(shard.tensor(name) for name in ("ID.text", "ID.ends", "y")))
    return ShardEntry(plan.file, plan.stop - plan.start, path.stat().st_size, sha256_of(path).hex(), crc)
