"""Packs the samples of a dataset into shards, or the missing and outdated part; can be interrupted at any time."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from feedrate.config import PackConfig, resolve_path
from feedrate.dataset.build import Data, build_data, check_shapes
from feedrate.dataset.formats.memory import memory_of
from feedrate.dataset.probe import probe, probe_again
from feedrate.dataset.shards.shard import Damaged, Shard
from feedrate.dataset.shards.shard_index import NAME, Index, PartitionEntry, ShardEntry, Source, names_crc
from feedrate.dataset.shards.stale import catalog_files, fingerprint
from feedrate.dataset.subset import ID_of, size_of
from feedrate.dataset.writing.output_folder import check_room, check_root, write_file, writing
from feedrate.dataset.writing.shard_writer import Plan, ShardWriter, packable, source_path
from feedrate.errors import UserError
from feedrate.system.cores import usable_cores
from feedrate.system.files import sync_folder
from feedrate.system.processes import in_processes
from feedrate.system.progress_bar import progress_bar

PROBED = 16  # samples of a partition that are loaded to estimate their size, and to detect random transforms
_SHARD = re.compile(r"\w+-\d{5,}\.safetensors")
# keys that do not change what a sample is
_ASIDE = ("root", "name", "task", "num_outputs", "mean", "std", "limit", "verify", "cache", "access", "stale")


def pack(config: PackConfig) -> Index:
    """Writes the shards of a dataset, or those that are missing or outdated; returns their index.

    Outdated shards are removed first, then an index without shards is written, then each shard, whole under its name,
    and last the index with all of them.

    Raises:
        UserError: a setting, the dataset, one of its samples or the folder cannot be used.
        KeyboardInterrupt: by Ctrl-C; the same call continues.
    """
    root = _root_of(config)
    check_root(root, NAME)
    data = build_data(config.dataset, config.seed)
    check_shapes(data, config.dataset)
    index = _index(config, data)
    nbytes = {name: _sample_bytes(part, config.seed, index.source.target) for name, part in data.partition.items()}
    rows = {name: _rows(part, nbytes[name], config.pack.shard_mb) for name, part in data.partition.items()}
    plans = _plans(data, rows, index)
    with writing(root):
        before = _existing(root, index)
        current = [plan for plan in plans if _is_current(root, plan, data, index)]
        missing = [plan for plan in plans if plan not in current]
        if before is not None and not missing and before == _finished(root, data, rows, plans, index):
            index, state = before, "is already done"
        else:
            for path in root.iterdir():
                if _SHARD.fullmatch(path.name) and path.name not in {plan.file for plan in current}:
                    path.unlink()
            needed = sum((plan.stop - plan.start) * (nbytes[plan.partition] + 100) for plan in missing)
            check_room(root, f"{len(missing):,} shards", int(needed))
            write_file(root / NAME, index.as_json(), flush=True)
            writer = ShardWriter(dict(data.partition), config.seed, index.X, index.y, root)
            _write_shards(writer, plans, missing, config.pack.num_workers)
            index, state = _finished(root, data, rows, plans, index), "is done"
            write_file(root / NAME, index.as_json(), flush=True)
            sync_folder(root)
    sizes = ", ".join(f"{part.samples:,} {name}" for name, part in index.partition.items())
    print(f"{root} {state}: {sizes} in {len(plans):,} shard{'s' if len(plans) != 1 else ''}")
    print(f"Train on it: python src/train.py dataset=packed dataset.root={config.root or root}")
    return index


def _root_of(config: PackConfig) -> Path:
    if config.root is not None:
        return resolve_path(config.root)
    if config.dataset.get("root") is None:
        raise UserError("root is missing: the dataset has no folder, beside which shards are written; set root=...")
    folder = resolve_path(config.dataset["root"])
    return folder.with_name(f"{folder.name}-packed")


def _index(config: PackConfig, data: Data) -> Index:
    """The index, without the shards."""
    target, train = str(config.dataset["_target_"]), data.partition["train"]
    ID = ID_of(train, 0)
    X, y = probe(train, 0, target, config.seed)
    folder = resolve_path(config.dataset["root"]) if config.dataset.get("root") else None
    kept = {key: value for key, value in config.dataset.items() if key not in _ASIDE and value is not None}
    settings = hashlib.sha256(json.dumps([kept, config.seed], sort_keys=True, default=str).encode()).hexdigest()
    suffix, path, prefix = None, source_path(train, ID), f"{folder}/{ID}"
    if path is not None and path.startswith(prefix):
        suffix = path.removeprefix(prefix)
    files = catalog_files(folder) if folder else {}
    source = Source(target, str(folder) if folder else None, suffix, settings, files)
    targets = data.targets
    forms = packable(X, "X", ID)[0], packable(y, "y", ID)[0]
    return Index(data.digest, targets.task, targets.classes, targets.num_outputs, *forms, source, {})


def _sample_bytes(dataset: Dataset[Any], seed: int, target: str) -> float:
    """Mean bytes of X over some samples; refuses a dataset whose samples differ between epochs."""
    count = min(size_of(dataset), PROBED)
    total = 0
    for at in range(count):
        index = at * size_of(dataset) // count
        ID = ID_of(dataset, index)
        X = torch.as_tensor(probe(dataset, index, target, seed)[0]).contiguous()
        later = torch.as_tensor(probe_again(dataset, index, seed, 1, ID)[0]).contiguous()
        if memory_of(X) != memory_of(later):  # as bytes, so that NaN equals itself
            raise UserError(
                f"{target} gives another sample {ID!r} in each epoch (a random transform), which packing would freeze\n"
                "Pack without the transform, and give it to dataset=packed as "
                "+dataset.transform._target_=my_package.MyTransform"
            )
        total += X.nbytes
    return total / count


def _rows(dataset: Dataset[Any], sample_bytes: float, shard_mb: int) -> int:
    """Samples of a shard."""
    return max(1, int(shard_mb * 1_000_000 / sample_bytes)) if sample_bytes else size_of(dataset)


def _plans(data: Data, rows: Mapping[str, int], index: Index) -> list[Plan]:
    made_of = replace(index, source=replace(index.source, files={})).as_json()
    plans = []
    for name, part in data.partition.items():
        for number, start in enumerate(range(0, size_of(part), rows[name])):
            stop, file = min(start + rows[name], size_of(part)), f"{name}-{number:05d}.safetensors"
            key = hashlib.sha256(made_of + f"{name},{start},{stop}".encode()).hexdigest()
            plans.append(Plan(name, file, start, stop, key))
    return plans


def _existing(root: Path, now: Index) -> Index | None:
    """The index in the folder, which must be one of the same dataset."""
    if not (root / NAME).is_file():
        return None
    found = Index.read(root, complete=False)
    target, folder = found.source.target, found.source.root
    if (target, folder) != (now.source.target, now.source.root):
        held = f"{target} of {folder}" if folder else target
        raise UserError(f"root={root}: holds shards of {held}; choose another root, or remove this folder")
    return found


def _is_current(root: Path, plan: Plan, data: Data, index: Index) -> bool:
    """Whether a shard exists, is made of the same samples and labels, and their files have not changed."""
    shard, dataset = Shard(str(root / plan.file), index.X), data.partition[plan.partition]
    try:
        if shard.key() != plan.key:
            return False
        before = shard.tensor("source").tolist()
    except (Damaged, UserError):
        return False
    IDs = (ID_of(dataset, at) for at in range(plan.start, plan.stop))
    return before == [list(fingerprint(source_path(dataset, ID))) for ID in IDs]


def _write_shards(writer: ShardWriter, plans: Sequence[Plan], missing: Sequence[Plan], num_workers: int | str) -> None:
    workers = min(max(1, num_workers) if isinstance(num_workers, int) else usable_cores(), len(missing))
    total = sum(plan.stop - plan.start for plan in plans)
    done = total - sum(plan.stop - plan.start for plan in missing)
    written, parts = len(plans) - len(missing), [list(missing[number::workers]) for number in range(workers)]
    try:
        with progress_bar("samples", total, done) as show, closing(in_processes(writer, parts)) as messages:
            for _, (count, finished) in messages:
                done += count
                written += finished is not None
                show(done)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted: {written:,} of {len(plans):,} shards are written; the same command goes on from there"
        ) from None


def _finished(root: Path, data: Data, rows: Mapping[str, int], plans: Sequence[Plan], index: Index) -> Index:
    """The index with all shards."""

    def entry(plan: Plan) -> ShardEntry:
        path = root / plan.file
        shard = Shard(str(path), index.X)
        crc = names_crc(*(shard.tensor(name) for name in ("ID.text", "ID.ends", "y")))
        return ShardEntry(plan.file, plan.stop - plan.start, path.stat().st_size, crc)

    partition = {
        name: PartitionEntry(size_of(part), rows[name], tuple(entry(plan) for plan in plans if plan.partition == name))
        for name, part in data.partition.items()
    }
    return replace(index, partition=partition)
