"""Shards that fill while training: the first epoch reads the files and keeps what it read, later ones read the shards.

Shards that are made before training are pack.py's affair; where the samples' files are is that of the dataset.

Each sample has its row, a sample's content is written before the record that makes it count, and no row that counts is
ever overwritten while another run may read it. So a kill leaves nothing wrong, and needs no mending.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
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

from feedrate.dataset.ids import IDs
from feedrate.dataset.sample_reader import Empty, fresh
from feedrate.dataset.shard import Damaged, read_places
from feedrate.errors import UserError

log = logging.getLogger("feedrate")
FOLDER = ".feedrate"  # below the dataset's root
COMPLETE = "complete"  # a file that is there once all rows are on disk
SHARD_BYTES = 256_000_000
UNKNOWN, GOOD, LEFT = 0, 1, 2  # a sample in this run: not looked at, taken from its shard, taken from its file
_HELD = 1 << 40  # added to a CRC-32, so that the record of a sample is never 0
_ORPHANS_S = 8.0  # workers of a killed run hold its lock until they notice, which torch's do after five seconds
_OFF = "set dataset.cache=none"

ReadBatch = Callable[[Sequence[str], Sequence[str], Empty], "Tensor | list[Tensor]"]


class ShardCache:
    """The rows of one list of IDs. `open` makes it; copies in workers share what is known of each sample.

    Args:
        folder: of the shards.
        count: number of samples.
        shape, dtype: of a sample; those that are not like it stay in their files.
        lock: descriptor that holds the folder's lock as long as this run lives.
        writable: this run alone uses the folder, and may fill it.
        verify: compare what is read from shards with its CRC-32, each time.
    """

    def __init__(
        self,
        folder: Path,
        count: int,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        lock: int,
        writable: bool,
        verify: bool = False,
    ) -> None:
        self.folder, self.shape, self.dtype, self.writable, self.verify = folder, shape, dtype, writable, verify
        self._bytes = math.prod(shape) * dtype.itemsize
        self._rows = max(1, SHARD_BYTES // self._bytes)
        self._count = count
        self._state = torch.zeros(count, dtype=torch.uint8).share_memory_()
        self._forget()
        self._end = weakref.finalize(self, _ended, folder, self._state, lock, writable, os.getpid())

    def _forget(self) -> None:
        self._shards: dict[int, _Rows] = {}
        self._looked = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_shards", "_end", "_looked")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    # -----------------------------------------------------------------------------------------------------
    # reading
    # -----------------------------------------------------------------------------------------------------

    def read(self, index: int, path: str, read: Callable[[], Tensor]) -> Tensor:
        """One sample, from its shard or else from `read()`, which is then kept."""
        if self._known(index, path) == GOOD:
            return self.gather(np.array([index]), fresh)[0]
        before = _stat(path)
        X = read()
        self._keep([index], [path], [before], X.contiguous()[None] if self._fits(X) else None)
        return X

    def read_batch(
        self, indices: np.ndarray, paths: Sequence[str], list_IDs: Sequence[str], read: ReadBatch, empty: Empty
    ) -> Tensor | list[Tensor] | None:
        """Many samples, (n, ...) in memory from `empty(shape, dtype)`; those not in shards come from `read`.

        None where the samples are not alike.
        """
        known = self._state.numpy()[indices]
        if self.verify or (known != GOOD).any():
            known = np.array([self._known(i, path) for i, path in zip(indices.tolist(), paths, strict=True)])
        good = known == GOOD
        rest = np.flatnonzero(~good).tolist()
        if len(rest) == len(indices):
            before = [_stat(path) for path in paths]
            X = read(paths, list_IDs, empty)
            self._keep(indices.tolist(), paths, before, X if isinstance(X, Tensor) and self._fits(X[0]) else None)
            return X
        out = empty((len(indices), *self.shape), self.dtype)
        if rest:
            names = [paths[at] for at in rest]
            before = [_stat(path) for path in names]
            found = read(names, [list_IDs[at] for at in rest], fresh)
            if not isinstance(found, Tensor) or not self._fits(found[0]):
                return None
            self._keep(indices[rest].tolist(), names, before, found)
            out[torch.tensor(rest)] = found
        self._gather(indices, good, out)
        return out

    def complete_batch(self, indices: np.ndarray) -> bool:
        """Whether all these samples are known to be in shards."""
        return not self.verify and bool((self._state.numpy()[indices] == GOOD).all())

    def gather(self, indices: np.ndarray, empty: Empty) -> Tensor:
        """A batch of samples that are all in shards."""
        out = empty((len(indices), *self.shape), self.dtype)
        self._gather(indices, None, out)
        return out

    def _gather(self, indices: np.ndarray, good: np.ndarray | None, out: Tensor) -> None:
        numbers, rows = np.divmod(indices, self._rows)
        if good is None and (numbers == numbers[0]).all():
            matrix = self._open(int(indices[0])).matrix
            flat = out.view(-1).view(torch.uint8).view(len(indices), -1)
            torch.index_select(matrix, 0, torch.from_numpy(rows), out=flat)
            return
        into, n = memoryview(out.view(-1).view(torch.uint8).numpy().data), self._bytes
        wanted = range(len(indices)) if good is None else np.flatnonzero(good).tolist()
        places = rows.tolist()
        for at in wanted:
            self._open(int(indices[at])).copy(places[at], into[at * n : at * n + n])

    def _fits(self, X: Tensor) -> bool:
        return tuple(X.shape) == self.shape and X.dtype == self.dtype

    def _known(self, index: int, path: str) -> int:
        """What is known of a sample in this run; looks once whether its row is there, whole, and up to date."""
        state = self._state.numpy()
        known, row = int(state[index]), index % self._rows
        if known == LEFT or (known == GOOD and not self.verify):
            return known
        shard = self._shard(index, make=False)
        if shard is None or not shard.crc32[row]:
            return UNKNOWN
        now = _stat(path)
        same = known == GOOD or now == (int(shard.size[row]), int(shard.mtime_ns[row]))
        # a run that only reads relies on what was complete; after a kill, or a power cut, each row has to prove itself
        if same and (self.writable or self.verify):
            same = zlib.crc32(shard.content(row)) + _HELD == int(shard.crc32[row])
        if same:
            state[index] = GOOD
        elif self.writable:
            state[index] = UNKNOWN
        else:
            with suppress(OSError):  # the next run is to fill the row anew
                (self.folder / COMPLETE).unlink()
            state[index] = LEFT
        return int(state[index])

    # -----------------------------------------------------------------------------------------------------
    # writing
    # -----------------------------------------------------------------------------------------------------

    def _keep(
        self,
        indices: Sequence[int],
        paths: Sequence[str],
        before: Sequence[tuple[int, int] | None],
        X: Tensor | None,
    ) -> None:
        """Keeps samples as they were read, but for those whose file was written to meanwhile."""
        if not self.writable:
            return
        state = self._state.numpy()
        if X is None:
            if len(indices) == 1:
                state[indices[0]] = LEFT
            return
        content, n = memoryview(X.view(-1).view(torch.uint8).numpy().data), self._bytes
        try:
            for at, (index, path, then) in enumerate(zip(indices, paths, before, strict=True)):
                if then is not None and state[index] == UNKNOWN and _settled(then[1]) and _stat(path) == then:
                    self._open(index).put(index % self._rows, content[at * n : at * n + n], then)
                    state[index] = GOOD
        except OSError as error:  # the disk is full, or gone: training goes on from the files
            self.writable = False
            log.warning("note: dataset.cache=shards: %s; the rest stays in its files", error.strerror or error)
        if time.monotonic() - self._looked > 10:
            self._looked = time.monotonic()
            _complete(self.folder, self._state)

    def _open(self, index: int) -> _Rows:
        found = self._shard(index)
        if found is None:
            raise OSError(errno.ENOENT, "a shard is gone", str(self.folder))
        return found

    def _shard(self, index: int, make: bool = True) -> _Rows | None:
        number = index // self._rows
        found = self._shards.get(number)
        if found is None:
            path = self.folder / f"{number:05d}.safetensors"
            if not path.is_file():
                if not make or not self.writable:
                    return None
                rows = min(self._rows, self._count - number * self._rows)
                _make(path, rows, self.shape, self.dtype)
            try:
                found = self._shards[number] = _Rows(path, self._bytes)
            except Damaged:  # cut off, or not ours: its samples are read from their files
                with suppress(OSError):
                    (path if self.writable else self.folder / COMPLETE).unlink()
                return None
        return found


class _Rows:
    """A shard of the cache: content and records, mapped."""

    def __init__(self, path: Path, nbytes: int) -> None:
        places = read_places(str(path))
        count = places["crc32"].shape[0]
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._begin, self._bytes = places["X"].begin, nbytes
        memory = np.memmap(path, np.uint8, "r+", offset=0)
        content = memory[self._begin : self._begin + count * nbytes]
        self.matrix = torch.from_numpy(content).view(count, nbytes)
        self._content = memoryview(content.data)
        self.crc32, self.size, self.mtime_ns = (
            memory[places[name].begin : places[name].end].view(np.int64)
            for name in ("crc32", "source.size", "source.mtime_ns")
        )

    def content(self, row: int) -> memoryview:
        return self._content[row * self._bytes : (row + 1) * self._bytes]

    def copy(self, row: int, into: memoryview) -> None:
        into[:] = self._content[row * self._bytes : (row + 1) * self._bytes]

    def put(self, row: int, content: memoryview, stat: tuple[int, int]) -> None:
        """Writes a row. It counts from the last step on."""
        self.crc32[row] = 0
        at, crc = self._begin + row * self._bytes, zlib.crc32(content)
        while len(content):  # written, not mapped: a full disk is then an error, and not the end of the process
            done = os.pwrite(self._file, content, at)
            content, at = content[done:], at + done
        self.size[row], self.mtime_ns[row] = stat
        self.crc32[row] = crc + _HELD

    def __del__(self) -> None:
        with suppress(OSError, AttributeError):
            os.close(self._file)


def _make(path: Path, rows: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """An empty shard, in its place whole or not at all; of several at once one wins."""
    name_of, itemsize, begin = _dtype_name(dtype), dtype.itemsize, 0
    entries: dict[str, Any] = {}
    for name, kind, form, size in (
        ("crc32", "I64", (rows,), 8), ("source.mtime_ns", "I64", (rows,), 8), ("source.size", "I64", (rows,), 8),
        ("X", name_of, (rows, *shape), itemsize),
    ):  # fmt: skip
        end = begin + math.prod(form) * size
        entries[name] = {"dtype": kind, "shape": list(form), "data_offsets": [begin, end]}
        begin = end
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    temporary = path.with_name(f".{path.name}-{os.getpid()}-{threading.get_ident()}")
    try:
        with temporary.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.flush()
            size = 8 + len(header) + begin
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)  # now, or the disk could be full in the middle of an epoch
            else:
                file.truncate(size)
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _dtype_name(dtype: torch.dtype) -> str:
    """safetensors' name of a dtype, as the library writes it."""
    from safetensors.torch import save

    header = save({"X": torch.empty(0, dtype=dtype)})
    found = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["X"]["dtype"]
    return str(found)


# ---------------------------------------------------------------------------------------------------------
# a run's beginning and end
# ---------------------------------------------------------------------------------------------------------


def open_cache(root: Path, partition: str, list_IDs: IDs, first: Tensor, verify: bool = False) -> ShardCache | None:
    """The cache of these samples, made if need be; None where another run fills it just now.

    Args:
        partition: its name; another list of IDs under that name has taken its place, and its shards go.
        first: a sample, which the others are to be like.

    Raises:
        UserError: the folder cannot be written, or there is no room.
    """
    digest = hashlib.sha256(f"{tuple(first.shape)},{first.dtype};".encode())
    for part in (list_IDs.ends, list_IDs.text):
        digest.update(memoryview(part.view(torch.uint8).numpy().data))
    folder = root / FOLDER / f"{partition}-{digest.hexdigest()[:16]}"
    if not first.nbytes:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        writable = _lock(lock, folder)
        if writable is None:
            os.close(lock)
            log.info("note: another run fills the cache of %s; this one reads the files", folder.parent.parent)
            return None
        if writable:
            for stray in folder.glob(".*.safetensors-*"):  # of a process that was killed
                stray.unlink()
            _remove_others(folder, partition)
            _check_room(folder, len(list_IDs) * first.nbytes)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"dataset.cache=shards: {folder} cannot be written ({reason}); mend that, or {_OFF}") from error
    return ShardCache(folder, len(list_IDs), tuple(first.shape), first.dtype, lock, writable, verify)


def _lock(lock: int, folder: Path) -> bool | None:
    """True: this run alone, which may write. False: with others that read what is complete. None: not now."""
    deadline = time.monotonic() + _ORPHANS_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return False if (folder / COMPLETE).is_file() else None
            if _alive(lock) or time.monotonic() > deadline:
                return None
            time.sleep(0.1)
    if (folder / COMPLETE).is_file():
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        return None
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    return True


def _alive(lock: int) -> bool:
    """Whether the process that took the lock for writing still runs; its workers may outlive it for a moment."""
    try:
        os.kill(int(os.pread(lock, 20, 0)), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def _remove_others(folder: Path, partition: str) -> None:
    for other in folder.parent.glob(f"{partition}-*"):
        if other == folder or not (other / ".lock").is_file():
            continue
        lock = os.open(other / ".lock", os.O_RDWR | os.O_CLOEXEC)
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(other, ignore_errors=True)
        os.close(lock)


def _check_room(folder: Path, needed: int) -> None:
    there = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    free = shutil.disk_usage(folder).free
    if needed - there > free:
        raise UserError(
            f"dataset.cache=shards: {folder} needs {(needed - there) / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free; "
            f"make room, or {_OFF}"
        )


def _ended(folder: Path, state: Tensor, lock: int, writable: bool, owner: int) -> None:
    """At the end of the run that opened the cache."""
    if os.getpid() == owner:
        if writable:
            with suppress(OSError):
                _complete(folder, state)
        os.close(lock)


def _complete(folder: Path, state: Tensor) -> None:
    """Marks the cache, once every sample has its row and all of them are on disk."""
    if not bool((state == GOOD).all()) or (folder / COMPLETE).is_file():
        return
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    (folder / COMPLETE).touch()


def _stat(path: str) -> tuple[int, int] | None:
    """Size and time of a file, None where there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _settled(mtime_ns: int) -> bool:
    """Whether a file would get another time if it were written to now: the tick of its clock is over."""
    tick_ns = 2_000_000_000 if mtime_ns % 1_000_000_000 == 0 else 50_000_000
    return abs(time.time_ns() - mtime_ns) > tick_ns
