"""A whole partition in memory, for data sets that fit; a baseline that reads the same folder as tensor_files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.data import Dataset

from feedrate.dataset.formats.memory import array_of, collated, copy_rows, in_range
from feedrate.dataset.formats.sample_reader import Empty
from feedrate.dataset.tensor_files import TensorFiles
from feedrate.errors import SampleError, UserError


class InMemory(Dataset[tuple[Tensor, Any]]):
    """Every file of the partition, read once into one tensor.

    Args:
        list_IDs, labels, root: as for TensorFiles.

    Attributes:
        X: (N, ...) in the samples' own dtype.

    Raises UserError where memory does not suffice, and SampleError for a file unlike the first one.
    """

    def __init__(self, list_IDs: Sequence[str], labels: Mapping[str, Any], root: str | Path = "data") -> None:
        files = TensorFiles(list_IDs, labels, root)
        self.list_IDs, self.labels = files.list_IDs, files.labels
        if not len(files):
            raise UserError("list_IDs is empty; in_memory needs at least one sample")
        first = files[0][0]
        needed, free = len(files) * first.nbytes / 1e9, psutil.virtual_memory().available / 1e9
        if needed > free:  # the system would allocate it and kill the process later
            rule = f"dataset=in_memory needs {needed:,.1f} GB of memory for one partition; {free:,.1f} GB are free"
            raise UserError(f"{rule}\ndataset=tensor_files reads the same folder sample by sample")
        self.X = torch.empty((len(files), *first.shape), dtype=first.dtype)
        for index, ID in enumerate(files.list_IDs):
            X = files[index][0]
            if X.shape != first.shape or X.dtype != first.dtype:
                path, found, wanted = files.path(ID), (tuple(X.shape), X.dtype), (tuple(first.shape), first.dtype)
                text = f"sample {ID!r} ({path}): is {found[0]} {found[1]}, the first sample is {wanted[0]} {wanted[1]}"
                remedy = "make them equal, or take the ID out of the partition"
                raise SampleError(f"{text}; {remedy}", ID=ID, path=path)
            self.X[index] = X

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        return self.X[index], self.labels[index]

    def load_batch(self, indices: np.ndarray, empty: Empty) -> tuple[Tensor, Any]:
        """The collated batch of the samples at `indices`, X in memory from `empty(shape, dtype)`."""
        indices = in_range(indices, len(self.X))
        X = empty((len(indices), *self.X.shape[1:]), self.X.dtype)
        copy_rows(array_of(self.X), indices, X)
        return X, collated(self.labels, indices)
