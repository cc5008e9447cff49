"""IDs, sizes and subsets of datasets."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Subset


def size_of(dataset: Dataset[Any]) -> int:
    return len(dataset)  # type: ignore[arg-type]


def list_IDs(dataset: Dataset[Any]) -> Sequence[str] | None:
    """The IDs of a dataset in the order of its indices, or None where it has none."""
    found = getattr(dataset, "list_IDs", None)
    return found if found is not None and not callable(found) else None


def ID_at(list_IDs: Sequence[str] | None, index: int) -> str:
    """The ID at an index; without a list of IDs it is the index as text."""
    return str(index) if list_IDs is None else str(list_IDs[index])


def ID_of(dataset: Dataset[Any], index: int) -> str:
    """The ID of the sample at an index."""
    return ID_at(list_IDs(dataset), index)


def path_of(dataset: Any, ID: str) -> str | None:
    """The file of a sample, where the dataset has a method `path(ID)`."""
    found = getattr(dataset, "path", None)
    try:
        return str(found(ID)) if callable(found) else None
    except Exception:  # a method of that name with another meaning
        return None


def unwrapped(dataset: Any, indices: Sequence[int] = ()) -> tuple[Any, Sequence[int]]:
    """The dataset below all torch Subsets, and what `indices` of the given one are there."""
    while isinstance(dataset, Subset):
        indices = [dataset.indices[index] for index in indices]
        dataset = dataset.dataset
    return dataset, indices


def held_out(dataset: Dataset[Any], count: int, seed: int) -> tuple[SubsetWithIDs, SubsetWithIDs]:
    """The dataset without `count` samples, and these; they depend on seed and size alone."""
    shuffled = np.random.Generator(np.random.Philox(seed)).permutation(size_of(dataset))
    # a list would hold a Python object for each index, copied page by page into workers
    kept, held = (array("q", np.sort(part).tobytes()) for part in (shuffled[count:], shuffled[:count]))
    return SubsetWithIDs(dataset, kept), SubsetWithIDs(dataset, held)


class SubsetWithIDs(Subset[Any]):
    """Some samples of a dataset, with their IDs and paths; `IDs` are those of the whole dataset, by default its own."""

    def __init__(self, dataset: Dataset[Any], indices: Sequence[int], IDs: Sequence[str] | None = None) -> None:
        super().__init__(dataset, indices)
        self.list_IDs = PickedIDs(list_IDs(dataset) if IDs is None else IDs, indices)
        if hasattr(dataset, "path"):
            self.path = dataset.path


class PickedIDs(Sequence[str]):
    """The IDs at some indices of a list of IDs, or these indices as texts; computed on access."""

    def __init__(self, list_IDs: Sequence[str] | None, indices: Sequence[int]) -> None:
        self.list_IDs, self.indices = list_IDs, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return PickedIDs(self.list_IDs, self.indices[index])
        return ID_at(self.list_IDs, self.indices[index])
