"""Reads one shard: a safetensors file of many samples, whose rows are copied straight into a batch."""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from feedrate.dataset.formats.memory import array_of, memory_of
from feedrate.errors import UserError

ACCESS = ("mmap", "pread")
KEY = "feedrate"  # in a shard's metadata, for the hash of what it was made of


@dataclass(frozen=True)
class Form:
    """Type of X, or of y, in every sample.

    Attributes:
        kind: 'tensor', 'array', 'numpy' (a NumPy scalar), 'int', 'float' or 'bool'.
        dtype: torch's name of it, such as 'uint8'; of a number that of the tensor that collating makes.
        shape: of the first sample; X may have another one in others, with as many dimensions.
    """

    kind: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.kind} {self.dtype} {self.shape}"

    @property
    def torch_dtype(self) -> torch.dtype:
        found = getattr(torch, self.dtype)
        assert isinstance(found, torch.dtype)
        return found

    def restored(self, value: Tensor) -> Any:
        """Converts a tensor back to the kind of the samples."""
        if self.kind == "tensor":
            return value
        if self.kind == "array":
            return value.numpy()
        return value.numpy()[()] if self.kind == "numpy" else value.item()


class Damaged(Exception):
    """A shard is not as it was written."""


class Shard:
    """A shard for reading, opened on first use; a copy in another process opens the file again.

    Args:
        path: of the file.
        form: of X.
        access: 'mmap' to copy from the mapped file, 'pread' to read each row.

    The tensors of a shard of n samples: `X` (n, *shape), or where shapes differ `X.values` end to end, `X.ends` (n,)
    and `X.shapes` (n, dimensions); `y` (n, *shape); `ID.text` UTF-8, `ID.ends` (n,); `crc32` (n,) of X's bytes; and
    `source` (n, 2), size and mtime_ns of each sample's file, (-1, 0) where there is none.
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

    def tensor(self, name: str) -> Tensor:
        """A copy of one of the tensors."""
        with _translated(self.path), safe_open(self.path, "pt") as file:
            found: Tensor = file.get_tensor(name)
            return found.clone()

    def key(self) -> str:
        """The hash of what it was made of."""
        with _translated(self.path), safe_open(self.path, "pt") as file:
            return str((file.metadata() or {}).get(KEY))

    def shape(self, row: int) -> tuple[int, ...]:
        """Shape of X in one sample."""
        opened = self.opened
        return opened.shape if opened.shapes is None else tuple(opened.shapes[row].tolist())

    def copy(self, row: int, into: memoryview, verify: bool = False) -> None:
        """Copies the bytes of X of one sample into memory of that size.

        Args:
            verify: compare them with the CRC-32 in the shard.

        Raises:
            Damaged: the file has become shorter, or the CRC-32 differs.
        """
        opened = self.opened
        begin, end = opened.bounds(row)
        if opened.memory is not None:
            into[:] = opened.memory[begin:end]
        else:
            begin, rest = begin + opened.begin, into
            while len(rest):
                count = os.preadv(opened.file, [rest], begin)
                if count <= 0:
                    raise Damaged("is truncated")
                rest, begin = rest[count:], begin + count
        if verify and zlib.crc32(into) != int(opened.crc32[row]):
            raise Damaged("its bytes do not match the CRC-32 in the shard")


class _Opened:
    """An open shard.

    Attributes:
        shape: of X in all samples, where `shapes` is None.
        shapes: (n, dimensions), where they differ.
        rows: (n, ...) all X as memory.array_of sees them, mapped; None where shapes differ, or without mapping.
        memory: the bytes of all X, mapped; None without mapping.
        file, begin: descriptor, and where in it the bytes of all X begin.
    """

    def __init__(self, path: str, form: Form, access: str) -> None:
        self.file = -1
        with _translated(path):
            get: Callable[[str], Tensor] = safe_open(path, "pt").get_tensor
            with Path(path).open("rb") as file:  # format: the README of safetensors
                length = int.from_bytes(file.read(8), "little")
                places = json.loads(file.read(length))
            self.crc32 = get("crc32").clone().numpy()
            self.shapes = self._ends = None
            name = "X"
            if "X.shapes" in places:
                name = "X.values"
                self.shapes, self._ends = (get(f"X.{of}").clone().numpy() for of in ("shapes", "ends"))
            self.itemsize = form.torch_dtype.itemsize
            self.shape = tuple(places[name]["shape"][1:]) if self.shapes is None else ()
            self.nbytes = math.prod(self.shape) * self.itemsize
            self.begin = 8 + length + places[name]["data_offsets"][0]
            self.rows = self.memory = None
            if access == "mmap":
                X = get(name)
                self.memory = memory_of(X)
                if self.shapes is None and self.nbytes:
                    self.rows = array_of(X)
            else:
                self.file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def bounds(self, row: int) -> tuple[int, int]:
        """Bytes of a sample within those of all."""
        if self._ends is None:
            return row * self.nbytes, (row + 1) * self.nbytes
        begin = int(self._ends[row - 1]) if row else 0
        return begin * self.itemsize, int(self._ends[row]) * self.itemsize

    def __del__(self) -> None:
        if self.file >= 0:
            os.close(self.file)


@contextmanager
def _translated(path: str) -> Iterator[None]:
    """Turns errors of reading a shard into `Damaged`."""
    try:
        yield
    except FileNotFoundError:
        raise Damaged("is missing") from None
    except OSError as error:
        raise UserError(f"shard {path}: cannot be read ({error.strerror or error})") from None
    except (SafetensorError, LookupError, ValueError, TypeError):
        raise Damaged("is damaged: its header does not fit it") from None
