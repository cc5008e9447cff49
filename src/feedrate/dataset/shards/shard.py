"""One shard: a safetensors file of many samples, and how rows are taken out of it straight into a batch.

Which samples belong into it, and whether it is up to date, is decided elsewhere.
"""

from __future__ import annotations

import errno
import json
import math
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from feedrate.dataset.formats.memory import array_of, memory_of
from feedrate.errors import UserError

ACCESS = ("mmap", "pread")
KEY = "feedrate"  # of the text in a shard's header
_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)


@dataclass(frozen=True)
class Form:
    """What X, or y, is in every sample.

    Attributes:
        kind: 'tensor', 'array', 'numpy' (a scalar of NumPy's), 'int', 'float' or 'bool'.
        dtype: torch's name of it, such as 'uint8'; of a number that of the tensor that collating makes.
        shape: of the first sample; X may have another one in others, with as many dimensions.
    """

    kind: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def torch_dtype(self) -> torch.dtype:
        found = getattr(torch, self.dtype)
        assert isinstance(found, torch.dtype)
        return found

    def restored(self, value: Tensor) -> Any:
        """A tensor in the kind of the samples."""
        if self.kind == "tensor":
            return value
        if self.kind == "array":
            return value.numpy()
        return value.numpy()[()] if self.kind == "numpy" else value.item()


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a shard, in bytes from the file's beginning."""

    shape: tuple[int, ...]
    begin: int
    end: int


class Damaged(Exception):
    """A shard is not as it was written; the text says how.

    Attributes:
        row: the first sample that cannot be had, None where that is not known.
    """

    def __init__(self, text: str, row: int | None = None) -> None:
        super().__init__(text)
        self.row = row


class Shard:
    """A shard that is read. Opened when it is first used; a copy in another process opens it anew.

    Args:
        path: of the file.
        form: of X.
        access: 'mmap' to copy from the mapped file, 'pread' to read each row.

    The tensors of a shard of n samples: `X` (n, *shape), or where shapes differ `X.values` end to end, `X.ends` (n,)
    and `X.shapes` (n, dimensions); `y` (n, *shape); `ID.text` UTF-8, `ID.ends` (n,); `crc32` (n,) of X's bytes; and of
    each sample's source file `source.size` (n,), -1 where there is none, `source.mtime_ns` (n,), `source.sha256`
    (n, 32).
    """

    def __init__(self, path: str, form: Form, access: str = "mmap") -> None:
        self.path, self.form, self.access = path, form, access
        self._opened: _Opened | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    @property
    def opened(self) -> _Opened:
        """The open file.

        Raises:
            Damaged: it is missing, or its header does not fit it.
        """
        if self._opened is None:
            self._opened = _Opened(self.path, self.form, self.access)
        return self._opened

    def tensor(self, name: str, rows: np.ndarray | None = None) -> Tensor:
        """A copy of one of the tensors, or of some of its rows."""
        with _translated(self.path), safe_open(self.path, "pt") as file:
            found: Tensor = file.get_tensor(name)
            return found.clone() if rows is None else found[torch.from_numpy(rows)]

    def shape(self, row: int) -> tuple[int, ...]:
        """Of X in one sample."""
        opened = self.opened
        return opened.shape if opened.shapes is None else tuple(opened.shapes[row].tolist())

    def copy(self, row: int, into: memoryview) -> None:
        """Puts the bytes of X of one sample into memory of that size.

        Raises:
            Damaged: the file has become shorter.
        """
        opened = self.opened
        begin, end = opened.bounds(row)
        if opened.memory is not None:
            into[:] = opened.memory[begin:end]
            return
        begin += opened.begin
        while len(into):
            got = os.preadv(opened.file, [into], begin)
            if got <= 0:
                raise Damaged("is truncated", row)
            into, begin = into[got:], begin + got

    def check(self, row: int, content: memoryview) -> None:
        """Compares the bytes of X of one sample with the CRC-32 that was taken when they were written.

        Raises:
            Damaged: they differ.
        """
        if zlib.crc32(content) != int(self.opened.crc32[row]):
            raise Damaged("its bytes do not match the CRC-32 in the shard", row)


class _Opened:
    """What is known of a shard once its header is read.

    Attributes:
        shape: of X in all samples, where `shapes` is None.
        shapes: (n, dimensions), where they differ.
        rows: (n, ...) all X as memory.array_of sees them, mapped; None where shapes differ, or without mapping.
        memory: the bytes of all X, mapped; None without mapping.
        file, begin: descriptor, and where in it the bytes of all X begin.
    """

    def __init__(self, path: str, form: Form, access: str) -> None:
        with _translated(path):
            places = read_places(path)
            handle = safe_open(path, "pt")
            get: Callable[[str], Tensor] = handle.get_tensor
            self.crc32 = get("crc32").clone().numpy()
            self.shapes = get("X.shapes").clone().numpy() if "X.shapes" in places else None
            self._ends = get("X.ends").clone().numpy() if self.shapes is not None else None
            name = "X" if self.shapes is None else "X.values"
            self.itemsize = form.torch_dtype.itemsize
            self.shape = places[name].shape[1:] if self.shapes is None else ()
            self.nbytes = math.prod(self.shape) * self.itemsize
            self.begin = places[name].begin
            self.rows = self.memory = None
            self.file = -1
            if access == "mmap":
                X = get(name)
                self.memory = memory_of(X)
                if self.shapes is None and self.nbytes:
                    self.rows = array_of(X)
            else:
                self.file = os.open(path, _FLAGS)

    def bounds(self, row: int) -> tuple[int, int]:
        """Bytes of a sample within those of all."""
        if self._ends is None:
            return row * self.nbytes, (row + 1) * self.nbytes
        begin = int(self._ends[row - 1]) if row else 0
        return begin * self.itemsize, int(self._ends[row]) * self.itemsize

    def bytes_of(self, row: int) -> int:
        """How many a sample has."""
        begin, end = self.bounds(row)
        return end - begin

    def __del__(self) -> None:
        if getattr(self, "file", -1) >= 0:
            os.close(self.file)


def read_places(path: str) -> dict[str, Place]:
    """Where each tensor of a shard lies.

    Source of the form: the safetensors README, "Format". The library has checked the header before.

    Raises:
        Damaged: it is no safetensors file, or not a whole one.
    """
    return {
        name: Place(tuple(entry["shape"]), *(base + at for at in entry["data_offsets"]))
        for base, name, entry in _entries(path)
        if name != "__metadata__"
    }


def _entries(path: str) -> list[tuple[int, str, Any]]:
    with _translated(path):
        with safe_open(path, "pt"):  # checks the header, and that the file is as long as it says
            pass
        with Path(path).open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            found: Mapping[str, Any] = json.loads(file.read(length))
    return [(8 + length, name, entry) for name, entry in found.items()]


def first_row_beyond(path: str) -> int | None:
    """The first sample of which a file that was cut off does not hold all, as its header says."""
    try:
        size = Path(path).stat().st_size
        with Path(path).open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            entry = json.loads(file.read(min(length, size)))["X"]
        begin, end = (8 + length + at for at in entry["data_offsets"])
        count = entry["shape"][0]
        return max(0, min(count - 1, (size - begin) * count // (end - begin))) if size < end else None
    except (OSError, ValueError, LookupError, TypeError, ZeroDivisionError):
        return None


class _translated:
    """Turns what goes wrong with a shard into `Damaged`."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, FileNotFoundError):
            raise Damaged("is missing") from None
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise UserError(
                f"{self._path}: too many open files ({error.strerror}); raise the limit (ulimit -n)"
            ) from None
        if isinstance(error, OSError):
            raise Damaged(f"cannot be read ({error.strerror or error})") from None
        if isinstance(error, (SafetensorError, LookupError, ValueError, TypeError)):
            raise Damaged("is damaged: its header does not fit it") from None
