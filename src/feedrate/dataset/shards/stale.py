"""Whether the files that were packed have changed since: their size and time, and where only the time differs, content.

What is done with those that have is the caller's affair.
"""

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
SOME = 10_000  # files of a partition that are looked at, a few microseconds each; evenly spread
CATALOG = ("partition.json", "labels.json", "samples.csv", "samples.parquet")


class Fingerprint(NamedTuple):
    """What tells whether a file has changed: bytes, time of the last change, and SHA-256 of its content."""

    size: int
    mtime_ns: int
    sha256: bytes


def fingerprint(path: str | Path) -> Fingerprint:
    """Of a file as it is.

    Raises:
        OSError: it cannot be read.
    """
    found = os.stat(path)  # noqa: PTH116
    return Fingerprint(found.st_size, found.st_mtime_ns, sha256_of(path))


def sha256_of(path: str | Path) -> bytes:
    """Of a file's content."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.digest()


def catalog_files(root: Path) -> dict[str, tuple[int, int, str]]:
    """Fingerprints of the files that hold partition and labels, as the index keeps them."""
    found = {}
    for name in CATALOG:
        if (root / name).is_file():
            now = fingerprint(root / name)
            found[name] = now.size, now.mtime_ns, now.sha256.hex()
    return found


class Fingerprints:
    """Those that a shard holds of the source files of its samples, or of some rows of it."""

    def __init__(self, shard: Shard, rows: np.ndarray | None = None) -> None:
        names = ("source.size", "source.mtime_ns", "source.sha256")
        self.size, self.mtime_ns, self.sha256 = (shard.tensor(name, rows).numpy() for name in names)

    def changed(self, row: int, path: str) -> bool | None:
        """Whether, of the rows read, a sample's file is another one now; None where there was none, or it is gone."""
        size = int(self.size[row])
        if size < 0:
            return None
        try:
            found = os.stat(path)  # noqa: PTH116
            if found.st_size != size:
                return True
            return found.st_mtime_ns != int(self.mtime_ns[row]) and sha256_of(path) != self.sha256[row].tobytes()
        except OSError:
            return None


def check_sources(
    index: Index, root: Path, partition: str, list_IDs: Sequence[str], shards: Sequence[Shard], every: bool
) -> None:
    """Refuses shards whose source has changed; a source that is gone is no hindrance.

    Args:
        every: look at every file; otherwise at no more than `SOME`.

    Raises:
        UserError: naming the shard and the sample.
    """
    source = index.source
    if source.root is None or not Path(source.root).is_dir():
        return
    again = "Give the command that made the shards (python src/pack.py ...) again, or set dataset.stale=ignore"
    for name, (size, mtime_ns, sha256) in source.files.items():
        path = Path(source.root) / name
        if not path.is_file():
            continue
        now = path.stat()
        same = now.st_size == size and (now.st_mtime_ns == mtime_ns or sha256_of(path).hex() == sha256)
        if not same:
            raise UserError(f"dataset.root={root}: {path} has changed since it was packed\n{again}")
    if source.suffix is None:
        return
    part = index.partition[partition]
    count = part.samples if every else min(part.samples, SOME)
    picked = np.unique(np.linspace(0, part.samples - 1, count).astype(np.int64))
    for number in np.unique(picked // part.rows).tolist():
        chosen = picked[picked // part.rows == number]
        try:
            then = Fingerprints(shards[number], chosen % part.rows)
        except Damaged as error:
            raise UserError(f"shard {shards[number].path}: {error}\n{again}") from None
        for place, at in enumerate(chosen.tolist()):
            file = f"{source.root}/{list_IDs[at]}{source.suffix}"
            if then.changed(place, file):
                raise UserError(
                    f"shard {shards[number].path}: the file of sample {list_IDs[at]!r} ({file}) has changed since it "
                    f"was packed\n{again}"
                )
