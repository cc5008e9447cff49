"""Samples in shards, as `python src/pack.py` writes them: equal to those of the dataset that was packed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from feedrate.config import resolve_path
from feedrate.dataset.catalog import Catalog
from feedrate.dataset.formats.memory import copy_rows, in_range, memory_of, rows_of
from feedrate.dataset.formats.sample_reader import Empty
from feedrate.dataset.ids import IDs, Labels
from feedrate.dataset.shards.shard import ACCESS, Damaged, Shard
from feedrate.dataset.shards.shard_index import Index, sample_error
from feedrate.dataset.shards.stale import CHECKS, check_sources
from feedrate.errors import UserError
from feedrate.timing.stages import stage


class Packed(Dataset[tuple[Any, Any]]):
    """One partition of a folder of shards.

    Args:
        root: the folder; a relative one counts from the repository root.
        partition: 'train', 'validation' or 'test'.
        transform: called with X (`feedrate.dataset.sample_rng()` gives random numbers), returns the model's input.
        access: 'mmap' to copy samples from the mapped shards; 'pread' to read each one, for network file systems.
        verify: 'crc' to compare each sample with the CRC-32 in the shard.
        stale: checks whether the packed files have changed: 'some' thousands of them, 'all', or 'ignore'.
        list_IDs, labels: of the partition; read from the shards if not given.

    A sample is `(X, y)` of the packed dataset, equal in bytes, shape and type.

    Raises:
        UserError: there are no shards, one of them is missing or damaged, or their source files have changed.
        SampleError: from `dataset[index]`, naming the sample and the shard.
    """

    def __init__(
        self,
        root: str | Path,
        partition: str = "train",
        transform: Callable[[Any], Any] | None = None,
        access: str = "mmap",
        verify: str = "none",
        stale: str = "some",
        list_IDs: Sequence[str] | None = None,
        labels: Mapping[str, Any] | None = None,
    ) -> None:
        choices = {"access": (access, ACCESS), "verify": (verify, ("none", "crc")), "stale": (stale, CHECKS)}
        for key, (value, known) in choices.items():
            if value not in known:
                raise UserError(f"dataset.{key}={value}: must be {', '.join(known[:-1])} or {known[-1]}")
        self.root = str(resolve_path(root))
        index = Index.read(Path(self.root))
        if partition not in index.partition:
            raise UserError(f"{self.root}: has no partition {partition!r}; packed are {', '.join(index.partition)}")
        if not isinstance(list_IDs, IDs) or not isinstance(labels, Labels):
            catalog = index.catalog(Path(self.root))
            list_IDs, labels = catalog.partition[partition], catalog.labels[partition]
        self.list_IDs, self.labels = list_IDs, labels.tensor
        self.transform, self.verify = transform, verify == "crc"
        self._X, self._y, self._rows = index.X, index.y, index.partition[partition].rows
        self._shards = [Shard(f"{self.root}/{of.file}", index.X, access) for of in index.partition[partition].shards]
        if stale != "ignore":
            check_sources(index, Path(self.root), partition, self.list_IDs, self._shards, every=stale == "all")

    @classmethod
    def catalog(cls, root: Path, task: str = "auto") -> Catalog:
        """Partition and labels of a folder, read from its shards; see Index.catalog."""
        return Index.read(root).catalog(root, task)

    def __len__(self) -> int:
        return len(self.list_IDs)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        index = range(len(self))[index]
        shard, row = self._shards[index // self._rows], index % self._rows
        try:
            X = torch.empty(shard.shape(row), dtype=self._X.torch_dtype)
            shard.copy(row, memory_of(X), self.verify)
        except Damaged as error:
            raise sample_error(shard, self.list_IDs, index, error) from None
        return self.from_X(index, X)

    def from_X(self, index: int, X: Tensor) -> tuple[Any, Any]:
        """The sample at an index from its stored tensor; a transform may change X."""
        value = self._X.restored(X)
        if self.transform is not None:
            with stage("transform"):
                value = self.transform(value)
        return value, self._y.restored(self.labels[index])

    def load_batch(self, indices: np.ndarray, empty: Empty) -> tuple[Tensor, Any] | None:
        """The collated batch of the samples at `indices`, X in memory from `empty(shape, dtype)`.

        None with a transform, or where shapes differ.
        """
        if self.transform is not None or not len(indices):
            return None
        X = self.load_X(indices, empty)
        return None if X is None else (X, self._labels(indices))

    def load_X(self, indices: np.ndarray, empty: Empty) -> Tensor | None:
        """The stored X of the samples at `indices`, (n, ...) in memory from `empty`; None where shapes differ."""
        indices = in_range(indices, len(self.list_IDs))
        if len(self._shards) > 1 or self.verify:
            return self._one_by_one(indices, empty)
        try:
            opened = self._shards[0].opened
        except Damaged as error:
            raise sample_error(self._shards[0], self.list_IDs, int(indices[0]), error) from None
        if opened.rows is None:
            return self._one_by_one(indices, empty)
        X = empty((len(indices), *opened.shape), self._X.torch_dtype)
        copy_rows(opened.rows, indices, X)
        return X

    def _one_by_one(self, indices: np.ndarray, empty: Empty) -> Tensor | None:
        """As load_X, from any shards."""
        numbers, rows = (found.tolist() for found in np.divmod(indices, self._rows))
        shards, at = [self._shards[number] for number in numbers], 0
        try:
            shape = shards[0].shape(rows[0])
            every = [shard.opened for shard in shards]
            uniform = all(opened.shapes is None and opened.shape == shape for opened in every)
            if not uniform and any(shard.shape(row) != shape for shard, row in zip(shards, rows, strict=True)):
                return None
            X = empty((len(rows), *shape), self._X.torch_dtype)
            into, n = memory_of(X), X.nbytes // len(rows)
            if uniform and not self.verify and every[0].memory is not None:
                for at, (opened, row) in enumerate(zip(every, rows, strict=True)):
                    into[at * n : at * n + n] = opened.memory[row * n : row * n + n]
                return X
            for at, (shard, row) in enumerate(zip(shards, rows, strict=True)):
                shard.copy(row, into[at * n : at * n + n], self.verify)
            return X
        except Damaged as error:
            raise sample_error(shards[at], self.list_IDs, int(indices[at]), error) from None

    def _labels(self, indices: np.ndarray) -> Any:
        picked = rows_of(self.labels, indices)
        if self._y.kind == "numpy":  # collating converts NumPy scalars by their value
            return default_collate([self._y.restored(y) for y in picked])
        return picked
