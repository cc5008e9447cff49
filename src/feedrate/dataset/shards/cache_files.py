"""Files of the cache: shards that grow, and a table with the place of each sample."""

from __future__ import annotations

import json
import math
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from feedrate.dataset.shards.shard import Damaged, read_places
from feedrate.system.folder import sync_folder

SHIFT = 32  # a place is the number of a shard, and below so many bits the row in it
_ARRAYS = ("crc32", "row", "source.mtime_ns", "source.size")


class OwnedShard:
    """A shard of the cache, mapped; one process appends to it.

    Attributes:
        matrix, content: all X, as (rows, bytes of a sample) uint8 and end to end.
        row: (rows,) 1 + the index of the sample; 0 where nothing is written yet.
        size, mtime_ns: (rows,) of the sample's file when it was read.
        crc32: (rows,) of X, 0 where not computed.
        used: rows that this process has written.
    """

    def __init__(self, path: Path, number: int, nbytes: int) -> None:
        places = read_places(str(path))
        self.number, self.used, self._bytes = number, 0, nbytes
        self._begin = places["X"].begin
        memory = np.memmap(path, np.uint8, "r+")
        X = memory[self._begin : places["X"].end]
        self.matrix = np.asarray(X).reshape(-1, nbytes)
        self.content = memoryview(X.data)
        self.crc32, self.row, self.mtime_ns, self.size = (
            memory[places[name].begin : places[name].end].view(np.int64) for name in _ARRAYS
        )
        self._path, self._file = path, -1

    def put(self, rows: slice, content: memoryview) -> None:
        """Writes X of some rows, with pwrite: through the mapping, a full disk would kill the process."""
        if self._file < 0:  # only the shard being written needs a descriptor
            self._file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        at = self._begin + rows.start * self._bytes
        while len(content):
            done = os.pwrite(self._file, content, at)
            content, at = content[done:], at + done

    def __del__(self) -> None:
        if getattr(self, "_file", -1) >= 0:
            os.close(self._file)


def publish(folder: Path, places: Tensor) -> None:
    """Flushes the shards to disk, then enters the new places into the table, where later runs find them."""
    now = places.numpy().copy()
    if not (now > 0).any():
        return
    table = np.memmap(folder / "table", np.int64, "r+")
    news = np.flatnonzero((now > 0) & (now != table))
    for number in np.unique((now[news] - 1) >> SHIFT).tolist():
        with (folder / shard_name(number)).open("rb+") as file:
            os.fsync(file.fileno())
    table[news] = now[news]


def reclaim(folder: Path) -> None:
    """Removes shards of which at least half is outdated, as files changed or two runs stored the same samples.

    The caller holds the folder's exclusive lock. Valid samples of such a shard leave the table first, so that they are
    read from their files again.
    """
    table = np.memmap(folder / "table", np.int64, "r+")
    for path in sorted(folder.glob("[0-9]*.safetensors")):
        first = (int(path.stem) << SHIFT) + 1
        try:
            place = read_places(str(path))["row"]
            row = np.fromfile(path, np.int64, (place.end - place.begin) // 8, offset=place.begin)
        except (Damaged, KeyError):
            row = np.zeros(0, np.int64)
        used = np.flatnonzero((row > 0) & (row <= len(table)))
        now = table[row[used] - 1]
        if 2 * np.count_nonzero((now != 0) & (now != first + used)) < len(used):
            continue
        table[(table >= first) & (table < first + (1 << SHIFT))] = 0
        table.flush()
        path.unlink()


def make_shard(path: Path, rows: int, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Creates an empty shard; False where there is one already."""
    begin = 0
    entries: dict[str, Any] = {}
    for name, kind, form, size in (
        *((name, "I64", (rows,), 8) for name in _ARRAYS),
        ("X", _dtype_name(dtype), (rows, *shape), dtype.itemsize),
    ):
        end = begin + math.prod(form) * size
        entries[name] = {"dtype": kind, "shape": list(form), "data_offsets": [begin, end]}
        begin = end
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    head = len(header).to_bytes(8, "little") + header
    return create(path, head, len(head) + begin, len(head) + entries["X"]["data_offsets"][0])


def create(path: Path, head: bytes, size: int, allocated: int) -> bool:
    """Creates a file of zeros after its head, atomically; False where there is one of that name.

    Args:
        allocated: bytes to allocate now, as writing through a mapping kills the process on a full disk.
    """
    temporary = path.with_name(f".{path.name}-{os.getpid()}-{threading.get_ident()}")
    try:
        with temporary.open("wb") as file:
            file.write(head)
            file.write(bytes(allocated - len(head)))
            file.truncate(size)
        os.link(temporary, path)
        sync_folder(path.parent)
        return True
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)


def _dtype_name(dtype: torch.dtype) -> str:
    """safetensors' name of a dtype."""
    header = save({"X": torch.empty(0, dtype=dtype)})
    return str(json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["X"]["dtype"])


def shard_name(number: int) -> str:
    return f"{number:05d}.safetensors"
