"""The whole partition in memory: what people do before they need this repository, kept as a baseline.

For data sets that fit. Reads the same folder as tensor_files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from feedrate.dataset.formats.memory import array_of, copy_rows, in_range, rows_of
from feedrate.dataset.formats.sample_reader import Empty
from feedrate.dataset.tensor_files import TensorFiles
from feedrate.errors import SampleError, UserError


class InMemory(Dataset[tuple[Tensor, Any]]):
    """Every file of the partition read once into one tensor.

    Args:
        list_IDs, labels, root: as for TensorFiles.

    Attributes:
        X: (N, ...) in the samples' own dtype.

    Raises:
        UserError: there is no sample, or there is not memory enough for all.
        SampleError: a file cannot be read, or its shape or dtype is not that of the first sample.
    """

    def __init__(self, list_IDs: Sequence[str], labels: Mapping[str, Any], root: str | Path = "data") -> None:
        files = TensorFiles(list_IDs, labels, root)
        self.list_IDs, self.labels = files.list_IDs, files.labels
        if not len(files):
            raise UserError("list_IDs is empty; in_memory needs at least one sample")
        first = files[0][0]
        _check_memory(len(files) * first.numel() * first.element_size())
        self.X = torch.empty((len(files), *first.shape), dtype=first.dtype)
        for index, ID in enumerate(files.list_IDs):
            X = files[index][0]
            if X.shape != first.shape or X.dtype != first.dtype:
                raise SampleError(
                    f"sample {ID!r} ({files.path(ID)}): is {tuple(X.shape)} {X.dtype}, the first sample is "
                    f"{tuple(first.shape)} {first.dtype}; make them alike, or take the ID out of the partition",
                    ID=ID,
                    path=files.path(ID),
                )
            self.X[index] = X

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        return self.X[index], self.labels[index]

    def load_batch(self, indices: np.ndarray, empty: Empty) -> tuple[Tensor, Any]:
        """What collating the samples at `indices` gives, copied once."""
        indices = in_range(indices, len(self.X))
        X = empty((len(indices), *self.X.shape[1:]), self.X.dtype)
        copy_rows(array_of(self.X), indices, X)
        if isinstance(self.labels, Tensor):
            return X, rows_of(self.labels, indices)
        return X, default_collate([self.labels[i] for i in indices.tolist()])


def _check_memory(needed: int) -> None:
    """Before allocating: the system promises more memory than it has, and ends the process once it is used."""
    import psutil

    free = psutil.virtual_memory().available
    if needed > free:
        gigabytes = f"{needed / 1e9:,.1f} GB of memory for one partition; {free / 1e9:,.1f} GB are free"
        raise UserError(
            f"dataset=in_memory needs {gigabytes}\ndataset=tensor_files reads the same folder sample by sample"
        )
