"""Packs what a dataset yields into shards, or what is missing of them; can be interrupted at any instant.

Making one shard is shard_writer.py's affair, training on them that of packed.py.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from feedrate.config import PackConfig
from feedrate.dataset.build import build_data, check_shapes
from feedrate.dataset.probe import probe, size_of
from feedrate.dataset.sample_writer import write_file
from feedrate.dataset.shards.pack_job import Job, check_root, check_source, current, entry_of, job_of, root_of
from feedrate.dataset.shards.shard_index import NAME, Index, PartitionEntry, ShardEntry
from feedrate.dataset.shards.shard_writer import TEMPORARY, Plan, ShardMaker
from feedrate.errors import UserError
from feedrate.system.cores import usable_cores
from feedrate.system.folder import Interrupted, locked, sync_folder
from feedrate.system.processes import in_processes
from feedrate.system.progress_bar import progress_bar
from feedrate.system.signals import signals_ignored

_SHARD = re.compile(r"\w+-\d{5,}\.safetensors")


def pack(config: PackConfig) -> Index:
    """Writes the shards of a dataset, or what is missing of them or out of date; returns their index.

    The order of events makes it safe: shards that are out of date go first, then comes an index that says what is being
    packed, then each shard, whole under its name, and last the index with all of them.

    Raises:
        UserError: a setting, the dataset, one of its samples or the folder cannot be used.
        Interrupted: by Ctrl-C; the same call goes on.
    """
    root = root_of(config)
    check_root(root)
    data = build_data(config.dataset, config.seed)
    check_shapes(data, config.dataset)
    job = job_of(config, root, data)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(root):
            check_root(root)
            check_source(job)
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
# what is written
# ---------------------------------------------------------------------------------------------------------


def _fill(job: Job, num_workers: int | str) -> tuple[Index, str]:
    """Writes what is missing; says in words what there was to do."""
    _remove(job.root, _is_left)
    kept = current(job)
    missing = [plan for plan in job.plans if plan not in kept]
    if not missing and (job.root / NAME).is_file():
        before = Index.read(job.root)
        if before.partition and None not in kept.values() and before == _finished(job, _whole(kept)):
            return before, "is already done"
    keep = {plan.file for plan in kept}
    _remove(job.root, lambda name: _SHARD.fullmatch(name) is not None and name not in keep)
    _check_room(job, missing)
    write_file(job.root / NAME, job.index.as_json(), flush=True)
    entries = {plan: entry or entry_of(job, plan) for plan, entry in kept.items()}
    try:
        _write_shards(job, missing, entries, num_workers)
    except KeyboardInterrupt:
        with signals_ignored():
            _remove(job.root, _is_left)
            raise Interrupted(f"{len(entries):,} of {len(job.plans):,} shards are written") from None
    except (UserError, OSError):
        _remove(job.root, _is_left)
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
    with progress_bar("samples", total, done) as show, closing(_news(maker, missing, workers)) as news:
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
        X = torch.as_tensor(probe(part, plan.start, job.index.source.target, job.seed)[0])
        needed += (plan.stop - plan.start) * (X.numel() * X.element_size() + 100)
    free = shutil.disk_usage(job.root).free
    if needed > free:
        raise UserError(
            f"root={job.root}: {len(missing):,} shards need about {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are "
            "free; make room, or choose another root"
        )


def _is_left(name: str) -> bool:
    """Whether a file is of a writer that was killed; safetensors writes to a file of its own first."""
    return name.startswith(TEMPORARY) or re.fullmatch(r"\.tmp\w{6}", name) is not None


def _remove(root: Path, chosen: Any) -> None:
    for path in root.iterdir():
        if chosen(path.name):
            path.unlink()
