"""Packs what a dataset yields into shards, or what is missing of them; can be interrupted at any instant.

Making one shard is shard_writer.py's affair, training on them that of packed.py.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from torch.utils.data import Dataset, Subset

from feedrate.config import PackConfig, resolve_path
from feedrate.dataset.build import Data, build_data
from feedrate.dataset.cores import usable_cores
from feedrate.dataset.counted import counted
from feedrate.dataset.look import look, look_again, size_of
from feedrate.dataset.part import list_IDs
from feedrate.dataset.processes import deaf, in_processes
from feedrate.dataset.sample_writer import write_file
from feedrate.dataset.shard import Damaged, Shard
from feedrate.dataset.shard_index import NAME, Index, PartitionEntry, ShardEntry, Source, names_crc
from feedrate.dataset.shard_writer import (
    TEMPORARY,
    Plan,
    ShardMaker,
    forms_of,
    source_path,
    sync_folder,
)  # fmt: skip
from feedrate.dataset.stale import Fingerprints, catalog_files, sha256_of
from feedrate.dataset.tensor_files import TensorFiles
from feedrate.errors import UserError

PROBED = 16  # samples of a partition that tell how large one is, and whether it is drawn anew in each epoch
_LOCK_S = 3.0  # the workers of a killed command hold its lock until they notice
_SHARD = re.compile(r"\w+-\d{5,}\.safetensors")
# keys that do not change what a sample is
_ASIDE = ("root", "name", "task", "num_outputs", "mean", "std", "limit", "verify", "cache", "access", "stale")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C; the text says what is written."""


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


def pack(config: PackConfig) -> Index:
    """Writes the shards of a dataset, or what is missing of them or out of date; returns their index.

    The order of events makes it safe: shards that are out of date go first, then comes an index that says what is being
    packed, then each shard, whole under its name, and last the index with all of them.

    Raises:
        UserError: a setting, the dataset, one of its samples or the folder cannot be used.
        Interrupted: by Ctrl-C; the same call goes on.
    """
    root = _root_of(config)
    _check_root(root)
    data = build_data(config.dataset, config.seed)
    job = _job(config, root, data)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root):
            _check_root(root)
            _check_source(job)
            index, state = _fill(job, config.pack.num_workers)
    except OSError as error:
        raise UserError(
            f"root={root}: cannot be written ({error.strerror or error})\n"
            "Make room, or choose another root; the same command goes on from what is written"
        ) from error
    count = sum(len(part.shards) for part in index.partition.values())
    sizes = ", ".join(f"{part.samples:,} {name}" for name, part in index.partition.items())
    print(f"{root} {state}: {sizes} in {count:,} shard{'s' if count != 1 else ''}")
    print(f"Train on it: python src/train.py dataset=packed dataset.root={config.root or root}")
    return index


# ---------------------------------------------------------------------------------------------------------
# what is to be done
# ---------------------------------------------------------------------------------------------------------


def _root_of(config: PackConfig) -> Path:
    if config.root is not None:
        return resolve_path(config.root)
    source = config.dataset.get("root")
    if source is None:
        raise UserError(
            "root is missing: the dataset has no folder beside which the shards could lie; set it with root=..."
        )
    folder = resolve_path(source)
    return folder.with_name(f"{folder.name}-packed")


def _check_root(root: Path) -> None:
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


def _job(config: PackConfig, root: Path, data: Data) -> Job:
    target, seed = str(config.dataset["_target_"]), config.seed
    train = data.partition["train"]
    X, y = forms_of(look(train, 0, target, seed), _ID(train, 0))
    rows = {name: _rows(part, seed, target, config.pack.shard_mb) for name, part in data.partition.items()}
    plans = tuple(
        Plan(name, number, start, min(start + rows[name], size_of(part)))
        for name, part in data.partition.items()
        for number, start in enumerate(range(0, size_of(part), rows[name]))
    )
    folder = resolve_path(config.dataset["root"]) if config.dataset.get("root") else None
    kept = {key: value for key, value in config.dataset.items() if key not in _ASIDE and value is not None}
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
        X = torch.as_tensor(look(dataset, index, target, seed)[0])
        again = torch.as_tensor(look_again(dataset, index, seed, 1, ID)[0])
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


def _check_source(job: Job) -> None:
    """That shards which are there from before were made of the same dataset."""
    if (job.root / NAME).is_file():
        before, now = Index.read(job.root).source, job.index.source
        if (before.target, before.root) != (now.target, now.root):
            held = f"{before.target} of {before.root}" if before.root else before.target
            raise UserError(f"root={job.root}: holds shards of {held}; choose another root, or remove this folder")


def _current(job: Job) -> dict[Plan, ShardEntry | None]:
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


def _entry(job: Job, plan: Plan) -> ShardEntry:
    """Of a shard that was written before an interruption."""
    path = job.root / plan.file
    shard = Shard(str(path), job.index.X)
    crc = names_crc(*(shard.tensor(name) for name in ("ID.text", "ID.ends", "y")))
    return ShardEntry(plan.file, plan.stop - plan.start, path.stat().st_size, sha256_of(path).hex(), crc)


# ---------------------------------------------------------------------------------------------------------
# what is written
# ---------------------------------------------------------------------------------------------------------


def _fill(job: Job, num_workers: int | str) -> tuple[Index, str]:
    """Writes what is missing; says in words what there was to do."""
    _remove(job.root, lambda name: name.startswith(TEMPORARY))
    kept = _current(job)
    missing = [plan for plan in job.plans if plan not in kept]
    if not missing and (job.root / NAME).is_file():
        before = Index.read(job.root)
        if before.partition and None not in kept.values() and before == _finished(job, _whole(kept)):
            return before, "is already done"
    keep = {plan.file for plan in kept}
    _remove(job.root, lambda name: _SHARD.fullmatch(name) is not None and name not in keep)
    _check_room(job, missing)
    write_file(job.root / NAME, job.index.as_json(), flush=True)
    entries = {plan: entry or _entry(job, plan) for plan, entry in kept.items()}
    try:
        _write_shards(job, missing, entries, num_workers)
    except KeyboardInterrupt:
        with deaf():
            _remove(job.root, lambda name: name.startswith(TEMPORARY))
            text = f"{len(entries):,} of {len(job.plans):,} shards are written"
            raise Interrupted(f"{text}; the same command goes on from there") from None
    except (UserError, OSError):
        _remove(job.root, lambda name: name.startswith(TEMPORARY))
        raise
    index = _finished(job, entries)
    write_file(job.root / NAME, index.as_json(), flush=True)
    sync_folder(job.root)
    return index, "is done"


def _whole(kept: Mapping[Plan, ShardEntry | None]) -> dict[Plan, ShardEntry]:
    return {plan: entry for plan, entry in kept.items() if entry is not None}


def _write_shards(job: Job, missing: list[Plan], entries: dict[Plan, ShardEntry], num_workers: int | str) -> None:
    wanted = num_workers if isinstance(num_workers, int) else usable_cores()
    workers = min(wanted, len(missing))
    workers = workers if workers > 1 else 0
    total = sum(plan.stop - plan.start for plan in job.plans)
    done = sum(plan.stop - plan.start for plan in entries)
    maker = ShardMaker(dict(job.data.partition), job.seed, job.index.X, job.index.y, job.root)
    with counted("samples", total, done) as show, closing(_news(maker, missing, workers)) as news:
        for count, finished in news:
            done += count
            if finished is not None:
                entries[finished[0]] = finished[1]
            show(done)


def _news(
    maker: ShardMaker, plans: list[Plan], workers: int
) -> Generator[tuple[int, tuple[Plan, ShardEntry] | None], None, None]:
    if not workers:
        yield from maker(plans)
        return
    with closing(in_processes(maker, [plans[number::workers] for number in range(workers)])) as all_news:
        for _, news in all_news:
            if news is not None:
                yield news


def _finished(job: Job, entries: Mapping[Plan, ShardEntry]) -> Index:
    partition = {
        name: PartitionEntry(
            size_of(part), job.rows[name], tuple(entries[plan] for plan in job.plans if plan.partition == name)
        )
        for name, part in job.data.partition.items()
    }
    return replace(job.index, partition=partition)


def _check_room(job: Job, missing: list[Plan]) -> None:
    needed = 0
    for plan in missing:
        part = job.data.partition[plan.partition]
        X = torch.as_tensor(look(part, plan.start, job.index.source.target, job.seed)[0])
        needed += (plan.stop - plan.start) * (X.numel() * X.element_size() + 100)
    free = shutil.disk_usage(job.root).free
    if needed > free:
        raise UserError(
            f"root={job.root}: {len(missing):,} shards need about {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are "
            "free; make room, or choose another root"
        )


def _remove(root: Path, chosen: Any) -> None:
    for path in root.iterdir():
        if chosen(path.name):
            path.unlink()


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    try:
        with FileLock(root / ".lock", timeout=_LOCK_S):
            yield
    except Timeout:
        raise UserError(f"root={root}: another command is writing there; wait for it, or choose another root") from None
