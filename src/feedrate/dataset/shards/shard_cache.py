"""`dataset.cache=shards`: one growing shard for each partition, filled while the first epoch reads the files.

Row i of the file `samples` is sample i; `entries` has the size and time of its file, and the CRC-32 of the row. A row
counts only if all of these match, so no lock is needed: after a kill, a power cut, or a change of a file, the file is
read and stored again.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import struct
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from feedrate.dataset.formats.memory import bytes_of, copy_rows, memory_of
from feedrate.dataset.formats.sample_reader import Empty, fresh
from feedrate.dataset.ids import IDs
from feedrate.dataset.shards.stale import NO_FILE, fingerprint
from feedrate.errors import UserError

_ENTRY = struct.Struct("3q")  # size and mtime_ns of the file, CRC-32 of the row
_SETTLED_NS = 2_000_000_000  # a younger file may still change within the resolution of its time

ReadBatch = Callable[[Sequence[str], Sequence[str], Empty], "Tensor | list[Tensor]"]


class ShardCache:
    """The stored samples of one list of IDs, made by `open_cache`.

    Args:
        folder: of the two files.
        count: number of samples.
        shape, dtype: of a sample; samples that differ stay in their files.
        verify: compare the CRC-32 at each reading, not only at the first one in a run.
    """

    def __init__(self, folder: Path, count: int, shape: tuple[int, ...], dtype: torch.dtype, verify: bool) -> None:
        self.folder, self.shape, self.dtype, self.verify = folder, shape, dtype, verify
        self._known = torch.zeros(count, dtype=torch.bool).share_memory_()  # rows checked in this run, by any worker
        self._open()

    def _open(self) -> None:
        count = len(self._known)
        self._bytes = math.prod(self.shape) * self.dtype.itemsize
        self._samples, self._entries = ((self.folder / name).open("r+b", 0) for name in ("samples", "entries"))
        self._rows = np.asarray(np.memmap(self._samples, np.uint8, "r", shape=(count, self._bytes)))
        self._table = np.asarray(np.memmap(self._entries, np.int64, "r", shape=(count, 3)))
        self._off = False

    def __getstate__(self) -> dict[str, Any]:
        return {key: self.__dict__[key] for key in ("folder", "shape", "dtype", "verify", "_known")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def read(self, index: int, path: str, read: Callable[[], Tensor]) -> Tensor:
        """One sample, from its row, or from `read()` and then stored."""
        if self._valid(index, path):
            return self.gather(np.array([index]), fresh)[0]
        before = fingerprint(path)
        X = read()
        self._keep([index], [before], X[None])
        return X

    def read_batch(
        self, indices: np.ndarray, paths: Sequence[str], list_IDs: Sequence[str], read: ReadBatch, empty: Empty
    ) -> Tensor | list[Tensor] | None:
        """Many samples, (n, ...) in memory from `empty(shape, dtype)`; those without a row come from `read`.

        None where only reading one by one works.
        """
        known = np.array([self._valid(index, path) for index, path in zip(indices.tolist(), paths, strict=True)])
        if known.all():
            return self.gather(indices, empty)
        rest = np.flatnonzero(~known)
        before = [fingerprint(paths[at]) for at in rest.tolist()]
        if not known.any():
            X = read(paths, list_IDs, empty)
            if isinstance(X, Tensor):
                self._keep(indices.tolist(), before, X)
            return X
        X = read([paths[at] for at in rest.tolist()], [list_IDs[at] for at in rest.tolist()], fresh)
        if not isinstance(X, Tensor) or (tuple(X.shape[1:]), X.dtype) != (self.shape, self.dtype):
            return None
        self._keep(indices[rest].tolist(), before, X)
        out = empty((len(indices), *self.shape), self.dtype)
        out[torch.from_numpy(rest)] = X
        out[torch.from_numpy(np.flatnonzero(known))] = self.gather(indices[known], fresh)
        return out

    def has(self, indices: np.ndarray) -> bool:
        """Whether all these samples have a row that was checked in this run."""
        return not self.verify and bool(self._known.numpy()[indices].all())

    def gather(self, indices: np.ndarray, empty: Empty) -> Tensor:
        """A batch of samples for which `has` is true."""
        out = empty((len(indices), *self.shape), self.dtype)
        copy_rows(self._rows, indices, bytes_of(out).view(len(indices), self._bytes))
        return out

    def _valid(self, index: int, path: str) -> bool:
        """Whether a sample's row is that of its file; compared once in a run."""
        known = bool(self._known[index])
        if known and not self.verify:
            return True
        size, mtime_ns, crc = self._table[index].tolist()
        if not size or not (known or (size, mtime_ns) == fingerprint(path)) or zlib.crc32(self._rows[index]) != crc:
            return False
        self._known[index] = True
        return True

    def _keep(self, indices: Sequence[int], before: Sequence[tuple[int, int]], X: Tensor) -> None:
        """Stores samples of the right form, (n, ...), until the disk is full.

        Args:
            before: size and time of their files before they were read, so that a later write shows.
        """
        if self._off or (tuple(X.shape[1:]), X.dtype) != (self.shape, self.dtype):
            return
        content, n, now = memory_of(X.contiguous()), self._bytes, time.time_ns()
        try:
            for at, (index, stat) in enumerate(zip(indices, before, strict=True)):
                if stat == NO_FILE or abs(now - stat[1]) < _SETTLED_NS:
                    continue
                row = content[at * n : at * n + n]
                if os.pwrite(self._samples.fileno(), row, index * n) < n:
                    raise OSError("no room")
                entry = _ENTRY.pack(*stat, zlib.crc32(row))
                os.pwrite(self._entries.fileno(), entry, index * _ENTRY.size)
                self._known[index] = True
        except OSError:  # the disk is full or gone: training continues from the files
            self._off = True


def open_cache(root: Path, partition: str, list_IDs: IDs, first: Tensor, verify: bool = False) -> ShardCache | None:
    """Opens or creates the cache of these samples; None for samples without elements.

    Args:
        partition: its name; the cache of another list of IDs under that name is removed.
        first: a sample; only samples of its shape and dtype are stored.

    Raises:
        UserError: the folder cannot be written, or there is no room.
    """
    if not first.nbytes:
        return None
    digest = hashlib.sha256(f"rows;{tuple(first.shape)},{first.dtype};".encode())
    for part in (list_IDs.ends, list_IDs.text):
        digest.update(memory_of(part))
    folder, count = root / ".feedrate" / f"{partition}-{digest.hexdigest()[:16]}", len(list_IDs)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, size in (("samples", count * first.nbytes), ("entries", count * _ENTRY.size)):
            _create(folder / name, size)
        for other in folder.parent.glob(f"{partition}-*"):
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)
        missing = np.count_nonzero(np.fromfile(folder / "entries", np.int64)[::3] == 0)
        needed, free = missing * first.nbytes, shutil.disk_usage(folder).free
        if needed > free:
            raise OSError(f"needs {needed / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are free")
        return ShardCache(folder, count, tuple(first.shape), first.dtype, verify)
    except OSError as error:
        fault = f"dataset.cache=shards: {folder} cannot be written ({error.strerror or error})"
        raise UserError(f"{fault}; free disk space or fix the permissions, or set dataset.cache=none") from error


def _create(path: Path, size: int) -> None:
    """Creates a sparse file of zeros, unless there is one of that size."""
    if path.is_file() and path.stat().st_size == size:
        return
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    with temporary.open("wb") as file:
        file.truncate(size)
    temporary.replace(path)
