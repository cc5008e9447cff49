"""One file per sample: `root/ID.pt` (TensorFiles) or `root/ID.npy` (ArrayFiles) holds X, a dictionary the labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from feedrate.config import resolve_path
from feedrate.dataset.formats.file_layout import learn_npy, learn_pt
from feedrate.dataset.formats.memory import collated, in_range
from feedrate.dataset.formats.npy_file import load_array
from feedrate.dataset.formats.pt_file import load_tensor
from feedrate.dataset.formats.sample_reader import Empty, SampleReader
from feedrate.dataset.ids import IDs, Labels
from feedrate.dataset.labels import single
from feedrate.dataset.shards.shard_cache import open_cache
from feedrate.dataset.storage.paths import Paths
from feedrate.dataset.subset import PickedIDs
from feedrate.errors import UserError, offence
from feedrate.timing.stages import stage


class TensorFiles(Dataset[tuple[Any, Any]]):
    """Samples in files of their own, as torch.save wrote them.

    Args:
        list_IDs: the partition's IDs; an ID may hold '/', and then names a file in a subfolder.
        labels: label by ID.
        root: folder of the files `ID.pt`; a relative one counts from the repository root.
        transform: called with X (`feedrate.dataset.sample_rng()` gives random numbers), returns the model's input.
        verify: 'crc' to compare each sample with the CRC-32 in its file, which torch.load ignores.
        cache: 'shards' to store samples in shards below `root` as they are read, and to read these from then on.
        partition: its name, for the cache.

    A sample is `(X, y)`: the file's tensor, and the label as a tensor (0-d for classes and numbers, (K,) for vectors).
    Labels that are no numbers are returned unchanged. A file may also hold `(X, y)`, y being the label.

    Raises UserError where an ID has no label, and `dataset[index]` SampleError, naming ID and file.
    """

    suffix = ".pt"

    def __init__(
        self,
        list_IDs: Sequence[str],
        labels: Mapping[str, Any],
        root: str | Path = "data",
        transform: Callable[[Any], Any] | None = None,
        verify: str = "none",
        cache: str = "none",
        partition: str = "samples",
    ) -> None:
        for key, value, other in (("verify", verify, "crc"), ("cache", cache, "shards")):
            if value not in ("none", other):
                raise UserError(f"dataset.{key}={value}: must be none or {other}")
        self.list_IDs = list_IDs if isinstance(list_IDs, IDs) else IDs(list_IDs)
        self.labels = _aligned(self.list_IDs, labels)
        self._label_of = _label_of(self.list_IDs, labels, self.labels)
        self.root = str(resolve_path(root))
        self.transform = transform
        self._reader = self._make_reader(verify == "crc")
        self._cache = None
        if cache == "shards" and len(self.list_IDs):
            first = self._reader.read(self.path(self.list_IDs[0]), self.list_IDs[0])
            self._cache = open_cache(Path(self.root), partition, self.list_IDs, first, verify == "crc")

    def _make_reader(self, verify: bool) -> SampleReader:
        return SampleReader(partial(load_tensor, label_of=self._label_of), learn_pt, verify)

    def __len__(self) -> int:
        return len(self.list_IDs)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        ID = self.list_IDs[index]
        path = self.path(ID)
        if self._cache is None:
            X = self._reader.read(path, ID)
        else:
            X = self._cache.read(range(len(self))[index], path, lambda: self._reader.read(path, ID))
        return self.from_X(index, X)

    def from_X(self, index: int, X: Tensor) -> tuple[Any, Any]:
        """The sample at an index from its file's tensor; a transform may change X."""
        value = X
        if self.transform is not None:
            with stage("transform"):
                value = self.transform(X)
        return value, self.labels[index]

    def load_batch(self, indices: np.ndarray, empty: Empty) -> tuple[Tensor, Any] | None:
        """The collated batch of the samples at `indices`, X read into memory from `empty(shape, dtype)`.

        None with a transform, or where shapes differ.
        """
        if self.transform is not None:
            return None
        X = self.load_X(indices, empty)
        return (X, collated(self.labels, indices)) if isinstance(X, Tensor) else None

    def load_X(self, indices: np.ndarray, empty: Empty) -> Tensor | list[Tensor] | None:
        """The tensors of the files at `indices`: (n, ...) in memory from `empty(shape, dtype)`, or a list where shapes
        differ; None where only reading one by one works.
        """
        indices = in_range(indices, len(self))
        if self._cache is not None and self._cache.has(indices):
            return self._cache.gather(indices, empty)
        IDs = PickedIDs(self.list_IDs, indices)  # type: ignore[arg-type]  # computed on access
        if type(self).path is not TensorFiles.path:
            paths: Sequence[str] = [self.path(ID) for ID in IDs]
        else:
            paths = Paths(self.root, self.list_IDs, self.suffix, indices)
        if self._cache is not None:
            return self._cache.read_batch(indices, paths, IDs, self._reader.read_batch, empty)
        return self._reader.read_batch(paths, IDs, empty)

    def path(self, ID: str) -> str:
        """The sample's file."""
        return f"{self.root}/{ID}{self.suffix}"


class ArrayFiles(TensorFiles):
    """Samples in files of their own, as np.save wrote them; X is a tensor in this machine's byte order.

    Arguments and errors are those of TensorFiles, without `verify`: such a file holds no CRC-32.
    """

    suffix = ".npy"

    def _make_reader(self, verify: bool) -> SampleReader:
        if verify:
            raise UserError("dataset.verify=crc: .npy files hold no CRC-32; set dataset.verify=none")
        return SampleReader(load_array, learn_npy)


def _label_of(list_IDs: IDs, labels: Mapping[str, Any], aligned: Tensor | list[Any]) -> Callable[[str], Any] | None:
    """Returns the original label of an ID; None for samples without labels."""
    if isinstance(labels, Labels):
        return labels.stated if labels.known else None
    return Labels(list_IDs, aligned).stated if isinstance(aligned, Tensor) else labels.__getitem__


def _aligned(list_IDs: IDs, labels: Mapping[str, Any]) -> Tensor | list[Any]:
    """Labels in the order of the IDs: a tensor, whose memory workers share, or a list where they are no numbers."""
    if isinstance(labels, Labels) and labels.list_IDs is list_IDs:
        return labels.tensor
    if missing := [ID for ID in list_IDs if ID not in labels]:
        raise UserError(offence("labels: IDs without a label", missing, "add them to the dictionary"))
    if isinstance(labels, Labels):
        return labels.tensor[[labels.position(ID) for ID in list_IDs]]
    # NumPy scalars, as from pandas, are numbers too
    values = [v.item() if isinstance(v, np.generic) else v for v in (labels[ID] for ID in list_IDs)]
    values = list(single({"": values})[""])
    kinds = {type(value) for value in values}
    try:
        if kinds and kinds <= {int, bool}:
            return torch.tensor(values, dtype=torch.int64)
        if kinds and (kinds <= {int, float} or kinds <= {list, tuple}):
            return torch.tensor(values, dtype=torch.float32)
    except (ValueError, TypeError, RuntimeError):  # lists of different lengths or of texts, numbers beyond 64 bits
        pass
    return values
