"""Finds a dataset's methods that load many samples at once, and collates samples into given memory."""

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
FromX = Callable[[int, Tensor], Any]
GetItems = Callable[[list[int]], Any]
_STACK = default_collate_fn_map[Tensor]


def load_batch_of(dataset: Any) -> LoadBatch | None:
    """The dataset's method `load_batch(indices, empty)`, also through Subsets.

    It returns what collating the samples at `indices`, (n,) int64, would, in memory from `empty(shape, dtype)`; or None
    if it cannot.
    """
    inner, subsets = _below(dataset)
    return _through(inner.load_batch, subsets) if _implements(inner, "load_batch") else None


def parts_of(dataset: Any) -> tuple[LoadBatch, FromX] | None:
    """The two halves of the dataset's `__getitem__`, also through Subsets.

    `load_X(indices, empty)` reads the stored part of many samples, as a tensor (n, ...) or a list; or returns None if
    it cannot. `from_X(index, X)` makes the sample of it, and may change X.
    """
    inner, subsets = _below(dataset)
    if not _implements(inner, "load_X"):
        return None
    return _through(inner.load_X, subsets), partial(_from_subset, inner.from_X, subsets) if subsets else inner.from_X


def getitems_of(dataset: Any) -> GetItems | None:
    """The dataset's `__getitems__`, PyTorch's protocol for many samples at once, also through Subsets."""
    inner, subsets = _below(dataset)
    if isinstance(inner, Subset) and type(inner).__getitems__ is Subset.__getitems__:
        return None  # it would bypass the __getitem__ of this subclass
    found = getattr(inner, "__getitems__", None)
    return partial(_subset_items, found, subsets) if callable(found) and subsets else found


def _below(dataset: Any) -> tuple[Any, list[Sequence[int]]]:
    """The dataset below Subsets that only choose samples, and the indices of these, outermost first."""
    subsets = []
    own = Subset.__getitem__, Subset.__getitems__
    while isinstance(dataset, Subset) and (type(dataset).__getitem__, type(dataset).__getitems__) == own:
        subsets.append(dataset.indices)
        dataset = dataset.dataset
    return dataset, subsets


def _implements(dataset: Any, method: str) -> bool:
    """Whether the dataset has the method. An inherited one is ignored where a subclass overrides `__getitem__`."""
    owner = next((kind for kind in type(dataset).__mro__ if {method, "__getitem__"} & kind.__dict__.keys()), None)
    return owner is not None and method in owner.__dict__


def _through(method: Any, subsets: list[Sequence[int]]) -> Any:
    return partial(_subset_batch, method, subsets) if subsets else method  # picklable, unlike a closure


def _subset_batch(method: Any, subsets: list[Sequence[int]], indices: np.ndarray, empty: Empty) -> Any:
    for subset in subsets:
        if isinstance(subset, array):  # as in SubsetWithIDs
            indices = np.frombuffer(subset, dtype=np.int64)[indices]
        else:
            indices = np.array([subset[i] for i in indices.tolist()], dtype=np.int64)
    return method(indices, empty)


def _from_subset(inner: FromX, subsets: list[Sequence[int]], index: int, X: Tensor) -> Any:
    for subset in subsets:
        index = subset[index]
    return inner(index, X)


def _subset_items(inner: GetItems, subsets: list[Sequence[int]], indices: list[int]) -> Any:
    for subset in subsets:
        indices = [subset[i] for i in indices]
    return inner(indices)


def stacked(samples: list[Any], empty: Empty) -> Any:
    """torch's default_collate, with tensors in memory from `empty(shape, dtype)`."""
    if default_collate_fn_map[Tensor] is not _STACK:  # replaced by the user
        return default_collate(samples)

    def stack(tensors: Any, *, collate_fn_map: Any = None) -> Tensor:
        first = tensors[0]
        if type(first) is not Tensor or first.layout != torch.strided or first.is_nested or first.device.type != "cpu":
            found: Tensor = _STACK(tensors, collate_fn_map=collate_fn_map)
            return found
        if any(tensor.dtype != first.dtype for tensor in tensors):
            raise TypeError("tensors of several dtypes")
        out = empty((len(tensors), *first.shape), first.dtype)
        return torch.stack(tensors, 0, out=out)

    return collate(samples, collate_fn_map={**default_collate_fn_map, Tensor: stack})
