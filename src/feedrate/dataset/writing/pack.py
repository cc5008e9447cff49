"""Packs the samples of a dataset into shards, or the missing and outdated part; can be interrupted at any time."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from feedrate.config import PackConfig, resolve_path
from feedrate.dataset.build import Data, build_data, check_shapes
from feedrate.dataset.probe import probe, probe_again
from feedrate.dataset.shards.shard import Damaged, Shard
from feedrate.dataset.shards.shard_index import NAME, Index, PartitionEntry, ShardEntry, Source, names_crc
from feedrate.dataset.shards.stale import Fingerprints, catalog_files, sha256_of
from feedrate.dataset.subset import ID_of, size_of, unwrapped
from feedrate.dataset.tensor_files import TensorFiles
from feedrate.dataset.writing.output_folder import (
    check_room,
    check_root,
    in_parallel,
    remove_partial,
    write_file,
    writing,
)
from feedrate.dataset.writing.shard_writer import Plan, ShardWriter, forms_of, same_bytes, source_path
from feedrate.errors import UserError
from feedrate.system.cores import usable_cores
from feedrate.system.folder import Interrupted, sync_folder
from feedrate.system.progress_bar import progress_bar
from feedrate.system.signals import signals_ignored

PROBED = 16  # samples of a partition that are loaded to estimate their size, and to detect random transforms
_SHARD = re.compile(r"\w+-\d{5,}\.safetensors")
# keys that do not change what a sample is
_ASIDE = ("root", "name", "task", "num_outputs", "mean", "std", "limit", "verify", "cache", "access", "stale")


@dataclass(frozen=True)
class Job:
    """A dataset to pack into a folder.

    Attributes:
        index: the final index, without the shards.
        sample_bytes: mean size of X, by partition.
        rows: samples of a shard, by partition.
        plans: all shards.
    """

    root: Path
    data: Data
    seed: int
    index: Index
    sample_bytes: Mapping[str, float]
    rows: Mapping[str, int]
    plans: tuple[Plan, ...]


def pack(config: PackConfig) -> Index:
    """Writes the shards of a dataset, or those that are missing or outdated; returns their index.

    Outdated shards are removed first, then an index without shards is written, then each shard, whole under its name,
    and last the index with all of them.

    Raises:
        UserError: a setting, the dataset, one of its samples or the folder cannot be used.
        Interrupted: by Ctrl-C; the same call continues.
    """
    root = _root_of(config)
    check_root(root, NAME)
    data = build_data(config.dataset, config.seed)
    check_shapes(data, config.dataset)
    job = _job(config, root, data)
    with writing(root):
        check_root(root, NAME)
        index, state = _fill(job, config.pack.num_workers)
    count = sum(len(part.shards) for part in index.partition.values())
    sizes = ", ".join(f"{part.samples:,} {name}" for name, part in index.partition.items())
    print(f"{root} {state}: {sizes} in {count:,} shard{'s' if count != 1 else ''}")
    print(f"Train on it: python src/train.py dataset=packed dataset.root={config.root or root}")
    return index


def _root_of(config: PackConfig) -> Path:
    if config.root is not None:
        return resolve_path(config.root)
    if config.dataset.get("root") is None:
        raise UserError("root is missing: the dataset has no folder, beside which shards are written; set root=...")
    folder = resolve_path(config.dataset["root"])
    return folder.with_name(f"{folder.name}-packed")


def _job(config: PackConfig, root: Path, data: Data) -> Job:
    target, seed = str(config.dataset["_target_"]), config.seed
    train = data.partition["train"]
    X, y = forms_of(probe(train, 0, target, seed), ID_of(train, 0))
    sample_bytes = {name: _sample_bytes(part, seed, target) for name, part in data.partition.items()}
    rows = {name: _rows(part, sample_bytes[name], config.pack.shard_mb) for name, part in data.partition.items()}
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
    files = catalog_files(folder) if folder else {}
    source = Source(target, str(folder) if folder else None, _suffix(train, folder), settings, files)
    index = Index(data.digest, data.targets.task, data.targets.classes, data.targets.num_outputs, X, y, source, {})
    return Job(root, data, seed, index, sample_bytes, rows, plans)


def _sample_bytes(dataset: Dataset[Any], seed: int, target: str) -> float:
    """Mean bytes of X over some samples; refuses a dataset whose samples differ between epochs."""
    count = min(size_of(dataset), PROBED)
    total = 0
    for at in range(count):
        index = at * size_of(dataset) // count
        ID = ID_of(dataset, index)
        X = torch.as_tensor(probe(dataset, index, target, seed)[0])
        if not same_bytes(X, torch.as_tensor(probe_again(dataset, index, seed, 1, ID)[0])):
            raise UserError(
                f"{target} gives another sample {ID!r} in each epoch (a random transform), which packing would freeze\n"
                "Pack without the transform, and give it to dataset=packed as "
                "+dataset.transform._target_=my_package.MyTransform"
            )
        total += X.nbytes
    return total / count


def _rows(dataset: Dataset[Any], sample_bytes: float, shard_mb: int) -> int:
    return max(1, int(shard_mb * 1_000_000 / sample_bytes)) if sample_bytes else size_of(dataset)


def _suffix(dataset: Dataset[Any], folder: Path | None) -> str | None:
    """What follows the ID in a sample's file name; None where samples are no files of the folder."""
    ID = ID_of(dataset, 0)
    path, prefix = source_path(dataset, ID), f"{folder}/{ID}"
    return path.removeprefix(prefix) if path is not None and folder is not None and path.startswith(prefix) else None


def _existing(job: Job) -> Index | None:
    """The index in the folder, which must be one of the same dataset."""
    if not (job.root / NAME).is_file():
        return None
    found = Index.read(job.root)
    before, now = found.source, job.index.source
    if (before.target, before.root) != (now.target, now.root):
        held = f"{before.target} of {before.root}" if before.root else before.target
        raise UserError(f"root={job.root}: holds shards of {held}; choose another root, or remove this folder")
    return found


def _current(job: Job, before: Index | None) -> dict[Plan, ShardEntry]:
    """The shards that exist and are up to date."""
    now = job.index
    if before is None or (before.X, before.y, before.source.settings) != (now.X, now.y, now.source.settings):
        return {}
    entries = {entry.file: entry for part in before.partition.values() for entry in part.shards}
    found = {}
    for plan in job.plans:
        path = job.root / plan.file
        shard = Shard(str(path), now.X)
        try:
            if path.is_file() and _is_current(job, plan, shard, before.digest == now.digest):
                entry = entries.get(plan.file)
                found[plan] = entry if entry and path.stat().st_size == entry.bytes else _entry_of(shard, plan)
        except (Damaged, UserError):
            continue
    return found


def _is_current(job: Job, plan: Plan, shard: Shard, same_labels: bool) -> bool:
    dataset = job.data.partition[plan.partition]
    names = [ID_of(dataset, index) for index in range(plan.start, plan.stop)]
    text, ends = shard.tensor("ID.text").numpy().tobytes(), shard.tensor("ID.ends").tolist()
    if text != "".join(names).encode() or ends != np.cumsum([len(ID.encode()) for ID in names]).tolist():
        return False
    packed = Fingerprints(shard)
    if not same_labels:
        labels = _labels(dataset, plan)
        if labels is None or not torch.equal(labels, shard.tensor("y")) or packed.size[0] < 0:
            return False
    for row, ID in enumerate(names):
        path = source_path(dataset, ID)
        if (path is None) != (packed.size[row] < 0) or (path is not None and packed.changed(row, path)):
            return False
    return True


def _labels(dataset: Dataset[Any], plan: Plan) -> Tensor | None:
    """The labels of a shard's samples, where the dataset holds them as a tensor."""
    inner, indices = unwrapped(dataset, range(plan.start, plan.stop))
    if type(inner).__getitem__ is not TensorFiles.__getitem__ or not isinstance(inner.labels, Tensor):
        return None
    found: Tensor = inner.labels[torch.tensor(indices)]
    return found


def _entry_of(shard: Shard, plan: Plan) -> ShardEntry:
    """The entry of a shard that was written before an interruption."""
    path = Path(shard.path)
    crc = names_crc(*(shard.tensor(name) for name in ("ID.text", "ID.ends", "y")))
    return ShardEntry(plan.file, plan.stop - plan.start, path.stat().st_size, sha256_of(path).hex(), crc)


def _fill(job: Job, num_workers: int | str) -> tuple[Index, str]:
    """Writes what is missing; returns the index, and 'is done' or 'is already done'."""
    before = _existing(job)
    remove_partial(job.root)
    entries = _current(job, before)
    missing = [plan for plan in job.plans if plan not in entries]
    if before is not None and not missing and before == _finished(job, entries):
        return before, "is already done"
    kept = {plan.file for plan in entries}
    for path in job.root.iterdir():
        if _SHARD.fullmatch(path.name) and path.name not in kept:
            path.unlink()
    needed = sum((plan.stop - plan.start) * (job.sample_bytes[plan.partition] + 100) for plan in missing)
    check_room(job.root, f"{len(missing):,} shards", int(needed))
    write_file(job.root / NAME, job.index.as_json(), flush=True)
    try:
        _write_shards(job, missing, entries, num_workers)
    except KeyboardInterrupt:
        with signals_ignored():
            remove_partial(job.root)
            raise Interrupted(f"{len(entries):,} of {len(job.plans):,} shards are written") from None
    except (UserError, OSError):
        remove_partial(job.root)
        raise
    index = _finished(job, entries)
    write_file(job.root / NAME, index.as_json(), flush=True)
    sync_folder(job.root)
    return index, "is done"


def _write_shards(job: Job, missing: list[Plan], entries: dict[Plan, ShardEntry], num_workers: int | str) -> None:
    """Writes the missing shards and adds them to `entries`."""
    workers = min(max(1, num_workers) if isinstance(num_workers, int) else usable_cores(), len(missing))
    total = sum(plan.stop - plan.start for plan in job.plans)
    done = sum(plan.stop - plan.start for plan in entries)
    writer = ShardWriter(dict(job.data.partition), job.seed, job.index.X, job.index.y, job.root)
    parts = [missing[number::workers] for number in range(workers)]
    with progress_bar("samples", total, done) as show, closing(in_parallel(writer, parts)) as messages:
        for _, (count, finished) in messages:
            done += count
            if finished is not None:
                entries[finished[0]] = finished[1]
            show(done)


def _finished(job: Job, entries: Mapping[Plan, ShardEntry]) -> Index:
    partition = {
        name: PartitionEntry(
            size_of(part), job.rows[name], tuple(entries[plan] for plan in job.plans if plan.partition == name)
        )
        for name, part in job.data.partition.items()
    }
    return replace(job.index, partition=partition)
