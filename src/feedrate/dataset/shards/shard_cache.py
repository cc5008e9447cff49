"""Shards that fill while training: the first epoch reads the files and stores the samples, later ones read the shards.

Each process appends the samples that it reads to a shard of its own, and never changes what it has written. A table
holds the place of each sample, which is set only when the shard is on disk. So no lock is needed: a kill or a power cut
loses the latest seconds at most, and simultaneous runs do not disturb each other.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import shutil
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from feedrate.dataset.formats.memory import bytes_of, copy_rows, memory_of
from feedrate.dataset.formats.sample_reader import Empty, fresh
from feedrate.dataset.ids import IDs
from feedrate.dataset.shards.cache_files import SHIFT, OwnedShard, create, make_shard, publish, reclaim, shard_name
from feedrate.dataset.shards.shard import Damaged
from feedrate.errors import UserError

FOLDER = ".feedrate"  # below the dataset's root
SHARD_BYTES = 256_000_000  # of a full shard; the file is sparse until then
PUBLISH_S = 5.0  # interval of flushing shards and entering their samples into the table
LEFT = -1  # place of a sample that is read from its file in this run; 0: not checked yet; else 1 + its place
HELD = 1 << 40  # added to a stored CRC-32, so that it is never 0
_OFF = "set dataset.cache=none"

ReadBatch = Callable[[Sequence[str], Sequence[str], Empty], "Tensor | list[Tensor]"]


class ShardCache:
    """The cached samples of one list of IDs, made by `open_cache`; copies in workers share the places of samples.

    Args:
        folder: of shards and table.
        count: number of samples.
        shape, dtype: of a sample; samples that differ stay in their files.
        verify: store the CRC-32 of samples, and compare it at each reading.
    """

    def __init__(self, folder: Path, count: int, shape: tuple[int, ...], dtype: torch.dtype, verify: bool) -> None:
        self.folder, self.shape, self.dtype, self.verify = folder, shape, dtype, verify
        self._bytes = math.prod(shape) * dtype.itemsize
        self._rows = max(1, SHARD_BYTES // self._bytes)
        self._count = count
        self._places = torch.zeros(count, dtype=torch.int64).share_memory_()
        self._forget()
        # workers may be killed before they publish, so the process that opened the cache does it once more
        self._end = weakref.finalize(self, _ended, folder, self._places, _in_use(folder), os.getpid())

    def _forget(self) -> None:
        self._shards: dict[int, OwnedShard] = {}
        self._own: OwnedShard | None = None
        self._table: np.ndarray | None = None
        self._published, self._publishing = time.monotonic(), False
        self._off = False
        self._lock = threading.RLock()
        self._pid = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        kept = ("folder", "shape", "dtype", "verify", "_bytes", "_rows", "_count", "_places")
        return {key: self.__dict__[key] for key in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def read(self, index: int, path: str, read: Callable[[], Tensor]) -> Tensor:
        """One sample, from its shard, or from `read()` and then stored."""
        if self._look(index, path) > 0:
            return self.gather(np.array([index]), fresh)[0]
        before = _stat(path)
        X = read()
        if self._fits(X):
            self._keep(np.array([index]), [before], X.contiguous()[None])
        else:
            self._places[index] = LEFT
        return X

    def read_batch(
        self, indices: np.ndarray, paths: Sequence[str], list_IDs: Sequence[str], read: ReadBatch, empty: Empty
    ) -> Tensor | list[Tensor] | None:
        """Many samples, (n, ...) in memory from `empty(shape, dtype)`; those not in shards come from `read`.

        None where their shapes differ.
        """
        known = np.array([self._look(index, path) > 0 for index, path in zip(indices.tolist(), paths, strict=True)])
        if not known.any():
            before = [_stat(path) for path in paths]
            X = read(paths, list_IDs, empty)
            if isinstance(X, Tensor) and self._fits(X[0]):
                self._keep(indices, before, X)
            return X
        out = empty((len(indices), *self.shape), self.dtype)
        rest = np.flatnonzero(~known)
        if len(rest):
            names = [paths[at] for at in rest.tolist()]
            before = [_stat(path) for path in names]
            found = read(names, [list_IDs[at] for at in rest.tolist()], fresh)
            if not isinstance(found, Tensor) or not self._fits(found[0]):
                return None
            self._keep(indices[rest], before, found)
            out[torch.from_numpy(rest)] = found
        self._gather(indices, np.flatnonzero(known), out)
        return out

    def has(self, indices: np.ndarray) -> bool:
        """Whether all these samples are known to be in shards and valid."""
        return not self.verify and bool((self._places.numpy()[indices] > 0).all())

    def gather(self, indices: np.ndarray, empty: Empty) -> Tensor:
        """A batch of samples for which `has` is true."""
        out = empty((len(indices), *self.shape), self.dtype)
        self._gather(indices, None, out)
        return out

    def _gather(self, indices: np.ndarray, chosen: np.ndarray | None, out: Tensor) -> None:
        """Copies samples into their rows of a batch; only the `chosen` ones unless None."""
        places = self._places.numpy()[indices] - 1
        numbers, rows = places >> SHIFT, places & ((1 << SHIFT) - 1)
        n = self._bytes
        if chosen is None and (numbers == numbers[0]).all():
            copy_rows(self._open(int(numbers[0])).matrix, rows, bytes_of(out).view(len(indices), -1))
            return
        into = memory_of(out)
        shards, starts = numbers.tolist(), (rows * n).tolist()
        for at in range(len(indices)) if chosen is None else chosen.tolist():
            begin = starts[at]
            into[at * n : at * n + n] = self._open(shards[at]).content[begin : begin + n]

    def _fits(self, X: Tensor) -> bool:
        return tuple(X.shape) == self.shape and X.dtype == self.dtype

    def _look(self, index: int, path: str) -> int:
        """The place of a sample; checked once in a run against the shard and the sample's file."""
        places = self._places.numpy()
        place = int(places[index])
        if place == LEFT or (place > 0 and not self.verify):
            return place
        if self._table is None:
            self._table = np.memmap(self.folder / "table", np.int64, "r+")
        if not place:
            place = int(self._table[index])
            if not place or not self._is_current(index, place, path):
                return 0
        if self.verify and not self._is_whole(place):
            place = 0
        places[index] = place
        return place

    def _is_current(self, index: int, place: int, path: str) -> bool:
        number, row = divmod(place - 1, 1 << SHIFT)
        try:
            shard = self._open(number)
        except (Damaged, OSError):  # truncated, or gone
            return False
        same = row < len(shard.row) and shard.row[row] == index + 1
        return bool(same and _stat(path) == (int(shard.size[row]), int(shard.mtime_ns[row])))

    def _is_whole(self, place: int) -> bool:
        number, row = divmod(place - 1, 1 << SHIFT)
        shard, n = self._open(number), self._bytes
        return bool(shard.crc32[row] == zlib.crc32(shard.content[row * n : row * n + n]) + HELD)

    def _open(self, number: int) -> OwnedShard:
        found = self._shards.get(number)
        if found is None:
            found = self._shards[number] = OwnedShard(self.folder / shard_name(number), number, self._bytes)
        return found

    def _keep(self, indices: np.ndarray, before: Sequence[tuple[int, int] | None], X: Tensor) -> None:
        """Stores samples, unless the disk is full.

        Args:
            before: size and time of their files before they were read, so that a later write shows.
            X: (n, *shape).
        """
        if self._off:
            return
        good = [at for at, then in enumerate(before) if then is not None and _settled(then[1])]
        if not good:
            return
        stats = [before[at] for at in good]
        if len(good) < len(before):
            X, indices = X[good], indices[good]
        with self._lock:
            try:
                if self._pid != os.getpid():  # forked: needs a shard and a lock of its own
                    self._forget()
                self._append(indices, np.array(stats, dtype=np.int64), memory_of(X))
            except OSError:  # the disk is full or gone: training continues from the files
                self._off = True
            if time.monotonic() - self._published > PUBLISH_S and not self._publishing:
                self._publishing = True
                threading.Thread(target=self._publish, daemon=True).start()

    def _append(self, indices: np.ndarray, stats: np.ndarray, content: memoryview) -> None:
        n, done = self._bytes, 0
        while done < len(indices):
            if self._own is None or self._own.used == len(self._own.row):
                self._own = self._new_shard()
            shard = self._own
            count = min(len(indices) - done, len(shard.row) - shard.used)
            rows = slice(shard.used, shard.used + count)
            piece = content[done * n : (done + count) * n]
            shard.put(rows, piece)
            taken = slice(done, done + count)
            shard.size[rows], shard.mtime_ns[rows] = stats[taken, 0], stats[taken, 1]
            if self.verify:
                shard.crc32[rows] = [zlib.crc32(piece[at * n : at * n + n]) + HELD for at in range(count)]
            shard.row[rows] = indices[taken] + 1
            first = (shard.number << SHIFT) + rows.start + 1
            self._places.numpy()[indices[taken]] = np.arange(first, first + count)
            shard.used += count
            done += count

    def _new_shard(self) -> OwnedShard:
        number = max((int(path.stem) for path in self.folder.glob("[0-9]*.safetensors")), default=-1) + 1
        while not make_shard(self.folder / shard_name(number), min(self._rows, self._count), self.shape, self.dtype):
            number += 1
        shard = self._shards[number] = OwnedShard(self.folder / shard_name(number), number, self._bytes)
        return shard

    def _publish(self) -> None:
        begin = time.monotonic()
        with suppress(OSError):
            publish(self.folder, self._places)
        # less often where it takes long
        self._published = time.monotonic() + 20 * (time.monotonic() - begin)
        self._publishing = False


def open_cache(root: Path, partition: str, list_IDs: IDs, first: Tensor, verify: bool = False) -> ShardCache | None:
    """Opens or creates the cache of these samples; None for samples without elements.

    Args:
        partition: its name; shards of an earlier list of IDs under that name are removed.
        first: a sample; only samples of its shape and dtype are stored.

    Raises:
        UserError: the folder cannot be written, or there is no room.
    """
    if not first.nbytes:
        return None
    digest = hashlib.sha256(f"{tuple(first.shape)},{first.dtype};".encode())
    for part in (list_IDs.ends, list_IDs.text):
        digest.update(memory_of(part))
    folder = root / FOLDER / f"{partition}-{digest.hexdigest()[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "table").is_file() and (folder / "table").stat().st_size != 8 * len(list_IDs):
            (folder / "table").unlink()
        create(folder / "table", b"", 8 * len(list_IDs), 8 * len(list_IDs))
        cache = ShardCache(folder, len(list_IDs), tuple(first.shape), first.dtype, verify)
        _remove_others(folder, partition)
        _check_room(folder, first.nbytes)
    except OSError as error:
        remedy = f"free disk space or fix the permissions, or {_OFF}"
        reason = error.strerror or error
        raise UserError(f"dataset.cache=shards: {folder} cannot be written ({reason}); {remedy}") from error
    return cache


def _in_use(folder: Path) -> int:
    """Opens a shared lock, which this process and its workers hold; the first user reclaims outdated room before."""
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    with suppress(OSError):  # in use, or a file system without locks
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        reclaim(folder)
    with suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_SH)  # waits while another process reclaims
    return lock


def _remove_others(folder: Path, partition: str) -> None:
    for other in folder.parent.glob(f"{partition}-*"):
        if other == folder or not (other / ".lock").is_file():
            continue
        lock = os.open(other / ".lock", os.O_RDWR | os.O_CLOEXEC)
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(other, ignore_errors=True)
        os.close(lock)


def _check_room(folder: Path, nbytes: int) -> None:
    table = np.fromfile(folder / "table", dtype=np.int64)
    needed, free = int((table == 0).sum()) * nbytes, shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"dataset.cache=shards: {folder} needs {needed / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are free; "
            f"make room, or {_OFF}"
        )


def _ended(folder: Path, places: Tensor, lock: int, owner: int) -> None:
    """Publishes at the end of the process that opened the cache."""
    if os.getpid() == owner:
        with suppress(OSError):
            publish(folder, places)
        os.close(lock)


def _stat(path: str) -> tuple[int, int] | None:
    """Size and time of a file, None where there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _settled(mtime_ns: int) -> bool:
    """Whether writing to the file now would change its time: its clock tick is over."""
    tick_ns = 2_000_000_000 if mtime_ns % 1_000_000_000 == 0 else 50_000_000
    return abs(time.time_ns() - mtime_ns) > tick_ns
