"""Memory of tensors as NumPy arrays and buffers: for a few rows NumPy's calls cost a third of torch's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate


def bytes_of(X: Tensor) -> Tensor:
    """The memory of a contiguous tensor, (bytes,) uint8."""
    return X.view(-1).view(torch.uint8)


def memory_of(X: Tensor) -> memoryview:
    """The memory of a contiguous tensor as a writable buffer."""
    return memoryview(bytes_of(X).numpy().data)


def array_of(X: Tensor) -> np.ndarray:
    """A contiguous tensor (n, ...) as an array on the same memory; (n, bytes) uint8 for dtypes unknown to NumPy."""
    try:
        return X.numpy()
    except TypeError:
        return bytes_of(X).view(len(X), X.nbytes // max(1, len(X))).numpy()


def in_range(indices: np.ndarray, size: int) -> np.ndarray:
    """Indices (n,) int64 of a list of `size` elements, with negative ones made positive.

    Raises:
        IndexError: one is out of range.
    """
    if not len(indices) or int(indices.view(np.uint64).max()) < size:  # a negative one is a large number then
        return indices
    return np.array([range(size)[index] for index in indices.tolist()], dtype=np.int64)


def copy_rows(source: np.ndarray, rows: np.ndarray, X: Tensor) -> None:
    """Copies rows of an array from `array_of` into X, one after another; `rows` must be in range."""
    source.take(rows, axis=0, out=array_of(X), mode="clip")  # any other mode would copy twice


def rows_of(values: Tensor, indices: np.ndarray) -> Tensor:
    """`values[indices]`, (n, ...), in memory of its own.

    Raises:
        IndexError: an index is out of range.
    """
    try:
        array = values.numpy()
    except TypeError:
        return values[torch.from_numpy(indices)]
    return torch.from_numpy(array[indices])


def collated(labels: Tensor | Sequence[Any], indices: np.ndarray) -> Any:
    """The labels at `indices` as a batch."""
    if isinstance(labels, Tensor):
        return rows_of(labels, indices)
    return default_collate([labels[i] for i in indices.tolist()])
