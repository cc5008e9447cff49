"""Paths of the files of a batch: as texts, computed on access, and as C strings."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from feedrate.dataset.ids import IDs
from feedrate.dataset.storage.uring import address


class Paths(Sequence[str]):
    """The paths `root/ID` + suffix of the samples at some indices, (n,) int64.

    Attributes:
        head, tail: the bytes before and after each ID.
        IDs: (n, length) uint8, the samples' IDs in UTF-8; None where their lengths differ.
        length: bytes of each path, None where they differ.
    """

    def __init__(self, root: str, list_IDs: IDs, suffix: str, indices: np.ndarray) -> None:
        self._root, self._list_IDs, self._suffix, self._indices = root, list_IDs, suffix, indices
        self.head, self.tail = os.fsencode(f"{root}/"), os.fsencode(suffix)
        self.IDs = list_IDs.table(indices) if sys.getfilesystemencoding() == "utf-8" else None
        self.length = None if self.IDs is None else len(self.head) + self.IDs.shape[1] + len(self.tail)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, row: Any) -> Any:  # no slices
        return f"{self._root}/{self._list_IDs[int(self._indices[row])]}{self._suffix}"


class Names:
    """Paths as C strings, in memory that is used again; for one thread."""

    def __init__(self) -> None:
        self._form: tuple[Any, ...] = ()

    def of(self, paths: Sequence[str]) -> tuple[np.ndarray, np.ndarray] | None:
        """The bytes, and the address of each path, (n,) uint64, until the next call; None where one has a zero byte."""
        if not isinstance(paths, Paths) or paths.IDs is None:
            return c_strings(paths)
        begin, (count, length) = len(paths.head), paths.IDs.shape
        form = paths.head, paths.tail, count, length
        if self._form != form:
            one = paths.head + bytes(length) + paths.tail + b"\0"
            self._form, self._bytes = form, np.tile(np.frombuffer(one, dtype=np.uint8), (count, 1))
            self._addresses = address(self._bytes) + np.arange(count, dtype=np.uint64) * len(one)
        self._bytes[:, begin : begin + length] = paths.IDs
        return self._bytes, self._addresses


def c_strings(paths: Sequence[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """Any paths as C strings, as `Names.of` returns them."""
    text = np.frombuffer(os.fsencode("\0".join(paths) + "\0"), dtype=np.uint8)
    ends = np.flatnonzero(text == 0)
    if len(ends) != len(paths):  # a zero byte within one would end it
        return None
    starts = np.zeros(len(paths), dtype=np.uint64)
    starts[1:] = ends[:-1] + 1
    return text, address(text) + starts
