"""Checks whether source files have changed since they were packed, by size and modification time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from feedrate.dataset.shards.shard import Damaged, Shard
from feedrate.dataset.shards.shard_index import Index
from feedrate.errors import UserError

CHECKS = ("some", "all", "ignore")
SOME = 10_000  # files of a partition that 'some' checks, evenly spread; a few microseconds each
NO_FILE = (-1, 0)
_CATALOG = ("partition.json", "labels.json", "samples.csv", "samples.parquet")
_REMEDY = "Run the command that made the shards (python src/pack.py ...) again, or set dataset.stale=ignore"


def fingerprint(path: str | Path | None) -> tuple[int, int]:
    """Size in bytes and modification time in ns of a file, (-1, 0) if there is none."""
    try:
        found = os.stat(path) if path is not None else None  # noqa: PTH116
    except OSError:
        found = None
    return (found.st_size, found.st_mtime_ns) if found is not None else NO_FILE


def catalog_files(root: Path) -> dict[str, tuple[int, int]]:
    """Fingerprints of the files that hold partition and labels."""
    return {name: fingerprint(root / name) for name in _CATALOG if (root / name).is_file()}


def check_sources(
    index: Index, root: Path, partition: str, list_IDs: Sequence[str], shards: Sequence[Shard], every: bool
) -> None:
    """Checks that the source files, as far as they still exist, are those that were packed.

    Args:
        every: check every sample's file; otherwise at most `SOME` of them.

    Raises:
        UserError: naming the shard and the sample.
    """
    source = index.source
    if source.root is None or not Path(source.root).is_dir():
        return
    for name, packed in source.files.items():
        if fingerprint(f"{source.root}/{name}") not in (packed, NO_FILE):
            raise UserError(f"dataset.root={root}: {source.root}/{name} has changed since it was packed\n{_REMEDY}")
    if source.suffix is None:
        return
    part = index.partition[partition]
    count = part.samples if every else min(part.samples, SOME)
    picked = np.unique(np.linspace(0, part.samples - 1, count).astype(np.int64))
    for number in np.unique(picked // part.rows).tolist():
        shard = shards[number]
        try:
            of_files = shard.tensor("source").tolist()
        except Damaged as error:
            raise UserError(f"shard {shard.path}: {error}\n{_REMEDY}") from None
        for at in picked[picked // part.rows == number].tolist():
            file = f"{source.root}/{list_IDs[at]}{source.suffix}"
            before = tuple(of_files[at % part.rows])
            if before != NO_FILE and fingerprint(file) not in (before, NO_FILE):
                fault = f"the file of sample {list_IDs[at]!r} ({file}) has changed since it was packed"
                raise UserError(f"shard {shard.path}: {fault}\n{_REMEDY}")
