"""Whole batches at once: which datasets can give them, and how samples become one without a detour.

What is done with a dataset that gives samples one by one is fetch.py's affair.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset, default_collate
from torch.utils.data._utils.collate import collate, default_collate_fn_map

from feedrate.dataset.formats.sample_reader import Empty

LoadBatch = Callable[[np.ndarray, Empty], Any]
LoadX = Callable[[np.ndarray, Empty], "Tensor | list[Tensor] | None"]
FromX = Callable[[int, Tensor], Any]
_TORCHS = default_collate_fn_map[Tensor]


def load_batch_of(dataset: Any) -> LoadBatch | None:
    """The dataset's method `load_batch(indices, empty)`, also through Subsets; None where it has none that counts.

    It gives what collating the samples at `indices`, (n,) int64, gives, with tensors in memory that
    `empty(shape, dtype)` returns; or None where that cannot be had at once. A subclass that brings a `__getitem__` of
    its own does not mean an inherited one.
    """
    if isinstance(dataset, Subset):
        inner = load_batch_of(dataset.dataset)
        if inner is None or type(dataset).__getitem__ is not Subset.__getitem__:
            return None
        return partial(_picked_batch, inner, dataset.indices)  # a function in here could not be sent to a worker
    for kind in type(dataset).__mro__:
        if "load_batch" in kind.__dict__:
            found: LoadBatch = dataset.load_batch
            return found
        if "__getitem__" in kind.__dict__:
            return None
    return None


def parts_of(dataset: Any) -> tuple[LoadX, FromX] | None:
    """The two halves of the dataset's `__getitem__`, also through Subsets; None where it has none that count.

    `load_X(indices, empty)` reads what is stored of many samples, as a tensor (n, ...) or a list; or None where that
    cannot be had at once. `from_X(index, X)` makes the sample of it, which may change X.
    """
    if isinstance(dataset, Subset):
        inner = parts_of(dataset.dataset)
        if inner is None or type(dataset).__getitem__ is not Subset.__getitem__:
            return None
        load_X, from_X = inner
        return partial(_picked_batch, load_X, dataset.indices), partial(_from_picked, from_X, dataset.indices)
    for kind in type(dataset).__mro__:
        if "load_X" in kind.__dict__:
            return dataset.load_X, dataset.from_X
        if "__getitem__" in kind.__dict__:
            return None
    return None


def getitems_of(dataset: Any) -> Callable[[list[int]], Any] | None:
    """The dataset's `__getitems__`, PyTorch's protocol for many samples at once, also through Subsets; None without."""
    if isinstance(dataset, Subset) and type(dataset).__getitems__ is Subset.__getitems__:
        inner, picked = getitems_of(dataset.dataset), dataset.indices
        if inner is None or type(dataset).__getitem__ is not Subset.__getitem__:
            return None
        return partial(_picked_items, inner, picked)
    found: Callable[[list[int]], Any] | None = getattr(dataset, "__getitems__", None)
    return found if callable(found) else None


def _picked_batch(inner: LoadBatch, picked: Sequence[int], indices: np.ndarray, empty: Empty) -> Any:
    return inner(_of_those(picked, indices), empty)


def _of_those(picked: Sequence[int], indices: np.ndarray) -> np.ndarray:
    if isinstance(picked, array):  # as a Part's are
        found: np.ndarray = np.frombuffer(picked, dtype=np.int64)[indices]
        return found
    return np.array([picked[i] for i in indices.tolist()], dtype=np.int64)


def _from_picked(inner: FromX, picked: Sequence[int], index: int, X: Tensor) -> Any:
    return inner(picked[index], X)


def _picked_items(inner: Callable[[list[int]], Any], picked: Sequence[int], indices: list[int]) -> Any:
    return inner([picked[i] for i in indices])


def stacked(samples: list[Any], empty: Empty) -> Any:
    """As torch's default_collate, with tensors in memory that `empty(shape, dtype)` returns."""

    if default_collate_fn_map[Tensor] is not _TORCHS:  # the user's own
        return default_collate(samples)

    def stack(tensors: Any, *, collate_fn_map: Any = None) -> Tensor:
        first = tensors[0]
        if type(first) is not Tensor or first.layout != torch.strided or first.is_nested or first.device.type != "cpu":
            found: Tensor = default_collate_fn_map[Tensor](tensors, collate_fn_map=collate_fn_map)
            return found
        out = empty((len(tensors), *first.shape), first.dtype)
        return torch.stack(tensors, 0, out=out)

    return collate(samples, collate_fn_map={**default_collate_fn_map, Tensor: stack})
