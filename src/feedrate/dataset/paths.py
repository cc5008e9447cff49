"""Where the files of a batch of samples are: as texts, made when they are asked for, or as what the system takes.

How they are read is sample_reader.py's affair.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from feedrate.dataset.ids import IDs
from feedrate.dataset.uring import address


class Paths(Sequence[str]):
    """`root/ID` with a suffix, for the samples at some indices.

    Attributes:
        length: bytes of each, None where they differ.
    """

    def __init__(self, root: str, list_IDs: IDs, indices: np.ndarray, suffix: str) -> None:
        self._root, self._list_IDs, self._indices, self._suffix = f"{root}/", list_IDs, indices, suffix
        self._table = list_IDs.table(indices) if sys.getfilesystemencoding() == "utf-8" else None
        self._head, self._tail = os.fsencode(self._root), os.fsencode(suffix)
        self.length = None
        if self._table is not None:
            self.length = len(self._head) + self._table.shape[1] + len(self._tail)

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[at] for at in range(*row.indices(len(self)))]
        return f"{self._root}{self._list_IDs[int(self._indices[row])]}{self._suffix}"

    def c_strings(self) -> np.ndarray | None:
        """(n, length + 1) uint8, each with a zero byte at its end; None where lengths differ."""
        if self._table is None or self.length is None:
            return None
        found = np.zeros((len(self), self.length + 1), dtype=np.uint8)
        begin, end = len(self._head), self.length - len(self._tail)
        found[:, :begin] = np.frombuffer(self._head, dtype=np.uint8)
        found[:, begin:end] = self._table
        found[:, end:-1] = np.frombuffer(self._tail, dtype=np.uint8)
        return found


def c_strings(paths: Sequence[str]) -> tuple[Any, np.ndarray] | None:
    """Paths as C has them: what holds their bytes, and the address of each, (n,) uint64; None where one cannot be."""
    if isinstance(paths, Paths) and (table := paths.c_strings()) is not None:
        return table, address(table) + np.arange(len(paths), dtype=np.uint64) * table.shape[1]
    text = np.frombuffer(os.fsencode("\0".join(paths) + "\0"), dtype=np.uint8)
    ends = np.flatnonzero(text == 0)
    if len(ends) != len(paths):  # a zero byte within one would end it
        return None
    starts = np.zeros(len(paths), dtype=np.uint64)
    starts[1:] = ends[:-1] + 1
    return text, address(text) + starts
