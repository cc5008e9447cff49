"""Some samples of a dataset, with their IDs: the first few, or those held out for validation.

Which samples a partition of a folder holds is the catalog's affair.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
from torch.utils.data import Dataset, Subset


def list_IDs(dataset: Dataset[Any]) -> Sequence[str] | None:
    """The IDs of a dataset in the order of its indices, or None where it has none."""
    found = getattr(dataset, "list_IDs", None)
    return found if found is not None and not callable(found) else None


def held_out(dataset: Dataset[Any], count: int, seed: int) -> tuple[SubsetWithIDs, SubsetWithIDs]:
    """The dataset without `count` samples, and these; which ones depends on seed and size alone."""
    shuffled = np.random.Generator(np.random.Philox(seed)).permutation(len(dataset))  # type: ignore[arg-type]
    return SubsetWithIDs(dataset, _compact(shuffled[count:])), SubsetWithIDs(dataset, _compact(shuffled[:count]))


def _compact(picked: np.ndarray) -> Sequence[int]:
    """In order, 8 bytes each; a list would hold a Python object for each, which workers would come to copy."""
    return array("q", np.sort(picked).astype(np.int64).tobytes())


class SubsetWithIDs(Subset[Any]):
    """Some samples of a dataset, with the IDs and paths of those samples.

    Args:
        dataset: map-style.
        indices: of the samples, in the part's order.
        IDs: of the whole dataset; None for those that it has itself, if any.
    """

    def __init__(self, dataset: Dataset[Any], indices: Sequence[int], IDs: Sequence[str] | None = None) -> None:
        super().__init__(dataset, indices)
        self.list_IDs = PickedIDs(list_IDs(dataset) if IDs is None else IDs, indices)
        if hasattr(dataset, "path"):
            self.path = dataset.path


class PickedIDs(Sequence[str]):
    """The IDs at some indices of a list of IDs, or these indices as texts where there is none; made when asked for."""

    def __init__(self, list_IDs: Sequence[str] | None, indices: Sequence[int]) -> None:
        self.list_IDs, self.indices = list_IDs, indices

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> PickedIDs: ...
    def __getitem__(self, index: int | slice) -> str | PickedIDs:
        if isinstance(index, slice):
            return PickedIDs(self.list_IDs, self.indices[index])
        at = self.indices[index]
        return str(at) if self.list_IDs is None else self.list_IDs[at]
