"""Paths of the files of a batch: as texts, computed on access, or as C strings in reused memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from feedrate.dataset.ids import IDs
from feedrate.dataset.storage.uring import address


class Folder:
    """The files `root/ID` + suffix of a list of IDs.

    Attributes:
        head, tail: the bytes before and after each ID.
    """

    def __init__(self, root: str, list_IDs: IDs, suffix: str) -> None:
        self.root, self.list_IDs, self.suffix = root, list_IDs, suffix
        self.head, self.tail = os.fsencode(f"{root}/"), os.fsencode(suffix)


class Paths(Sequence[str]):
    """The paths of the samples at some indices, (n,) int64.

    Attributes:
        folder: of the files.
        IDs: (n, length) uint8, the samples' IDs in UTF-8; None where their lengths differ.
        length: bytes of each path, None where they differ.
    """

    def __init__(self, folder: Folder, indices: np.ndarray) -> None:
        self.folder, self._indices = folder, indices
        self.IDs = folder.list_IDs.table(indices) if sys.getfilesystemencoding() == "utf-8" else None
        self.length = None if self.IDs is None else len(folder.head) + self.IDs.shape[1] + len(folder.tail)

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[at] for at in range(*row.indices(len(self)))]
        folder = self.folder
        return f"{folder.root}/{folder.list_IDs[int(self._indices[row])]}{folder.suffix}"


class Names:
    """Paths as C strings in reused memory; for one thread."""

    def __init__(self) -> None:
        self._folder: Folder | None = None
        self._bytes, self._addresses = np.zeros((0, 0), dtype=np.uint8), np.zeros(0, dtype=np.uint64)

    def of(self, paths: Sequence[str]) -> tuple[Any, np.ndarray] | None:
        """The object that holds the bytes, and the address of each path, (n,) uint64, valid until the next call; None
        where a path contains a zero byte.
        """
        if not isinstance(paths, Paths) or paths.IDs is None or paths.length is None:
            return c_strings(paths)
        count, begin, end = len(paths), len(paths.folder.head), paths.length - len(paths.folder.tail)
        if self._folder is not paths.folder or self._bytes.shape[1] != paths.length + 1 or len(self._bytes) < count:
            self._folder = paths.folder
            one = paths.folder.head + bytes(end - begin) + paths.folder.tail + b"\0"
            self._bytes = np.tile(np.frombuffer(one, dtype=np.uint8), (count, 1))
            self._addresses = address(self._bytes) + np.arange(count, dtype=np.uint64) * len(one)
        self._bytes[:count, begin:end] = paths.IDs
        return self._bytes, self._addresses[:count]


def c_strings(paths: Sequence[str]) -> tuple[Any, np.ndarray] | None:
    """Any paths as C strings, as `Names.of` returns them."""
    text = np.frombuffer(os.fsencode("\0".join(paths) + "\0"), dtype=np.uint8)
    ends = np.flatnonzero(text == 0)
    if len(ends) != len(paths):  # a zero byte within one would end it
        return None
    starts = np.zeros(len(paths), dtype=np.uint64)
    starts[1:] = ends[:-1] + 1
    return text, address(text) + starts
