"""Tells whether source files have changed since they were packed: by size and time, then by content."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from feedrate.dataset.shards.shard import Damaged, Shard
from feedrate.dataset.shards.shard_index import Index
from feedrate.errors import UserError

CHECKS = ("some", "all", "ignore")
SOME = 10_000  # files of a partition that 'some' checks, evenly spread; a few microseconds each
CATALOG = ("partition.json", "labels.json", "samples.csv", "samples.parquet")
_REMEDY = "Run the command that made the shards (python src/pack.py ...) again, or set dataset.stale=ignore"


class Fingerprint(NamedTuple):
    """Size in bytes, modification time, and SHA-256 of a file."""

    size: int
    mtime_ns: int
    sha256: bytes


def fingerprint(path: str | Path) -> Fingerprint:
    found = os.stat(path)  # noqa: PTH116
    return Fingerprint(found.st_size, found.st_mtime_ns, sha256_of(path))


def sha256_of(path: str | Path) -> bytes:
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.digest()


def catalog_files(root: Path) -> dict[str, tuple[int, int, str]]:
    """Fingerprints of the files that hold partition and labels, as the index stores them."""
    found = {name: fingerprint(root / name) for name in CATALOG if (root / name).is_file()}
    return {name: (now.size, now.mtime_ns, now.sha256.hex()) for name, now in found.items()}


def _differs(path: str | Path, size: int, mtime_ns: int, sha256: bytes) -> bool:
    """Whether a file is another one now; its content is read only where the time alone differs."""
    now = os.stat(path)  # noqa: PTH116
    return now.st_size != size or (now.st_mtime_ns != mtime_ns and sha256_of(path) != sha256)


class Fingerprints:
    """Fingerprints that a shard stores of its samples' files; of all rows or some."""

    def __init__(self, shard: Shard, rows: np.ndarray | None = None) -> None:
        names = ("source.size", "source.mtime_ns", "source.sha256")
        self.size, self.mtime_ns, self.sha256 = (shard.tensor(name, rows).numpy() for name in names)

    def changed(self, row: int, path: str) -> bool:
        """Whether a sample's file has changed; False where there was none, or it is gone."""
        size = int(self.size[row])
        try:
            return size >= 0 and _differs(path, size, int(self.mtime_ns[row]), self.sha256[row].tobytes())
        except OSError:
            return False


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
    for name, (size, mtime_ns, sha256) in source.files.items():
        path = Path(source.root) / name
        if path.is_file() and _differs(path, size, mtime_ns, bytes.fromhex(sha256)):
            raise UserError(f"dataset.root={root}: {path} has changed since it was packed\n{_REMEDY}")
    if source.suffix is None:
        return
    part = index.partition[partition]
    count = part.samples if every else min(part.samples, SOME)
    picked = np.unique(np.linspace(0, part.samples - 1, count).astype(np.int64))
    for number in np.unique(picked // part.rows).tolist():
        chosen = picked[picked // part.rows == number]
        try:
            packed = Fingerprints(shards[number], chosen % part.rows)
        except Damaged as error:
            raise UserError(f"shard {shards[number].path}: {error}\n{_REMEDY}") from None
        for row, at in enumerate(chosen.tolist()):
            file = f"{source.root}/{list_IDs[at]}{source.suffix}"
            if packed.changed(row, file):
                what = f"the file of sample {list_IDs[at]!r} ({file}) has changed since it was packed"
                raise UserError(f"shard {shards[number].path}: {what}\n{_REMEDY}")
