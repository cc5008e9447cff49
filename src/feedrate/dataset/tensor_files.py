"""One `.pt` file per sample: `root/ID.pt` holds the tensor X, the labels come from a dictionary.

Order, batches and workers are the loader's affair.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from feedrate.config import resolve_path
from feedrate.dataset.ids import IDs, Labels
from feedrate.errors import SampleError, UserError

MAX_EXPANDED_BYTES = 1 << 30  # a tensor may be larger than its file (torch.Tensor.expand), up to this


class TensorFiles(Dataset[tuple[Any, Any]]):
    """Samples in files of their own, as torch.save wrote them.

    Args:
        list_IDs: the partition's IDs; an ID may hold '/', and then names a file in a subfolder.
        labels: label by ID.
        root: folder of the files `ID.pt`; a relative one counts from the repository root.
        transform: called with X (and with `feedrate.dataset.sample_rng()` at hand), returns what the model gets.

    A sample is `(X, y)`: the file's tensor, and the label as a tensor (0-d for classes and numbers, (K,) for vectors).
    Labels that are no numbers are returned as they are.

    Raises:
        UserError: an ID has no label.
        SampleError: from `dataset[index]`, naming ID and file.
    """

    def __init__(
        self,
        list_IDs: Sequence[str],
        labels: Mapping[str, Any],
        root: str | Path = "data",
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        self.list_IDs = list_IDs if isinstance(list_IDs, IDs) else IDs(list_IDs)
        self.labels = _aligned(self.list_IDs, labels)
        self.root = str(resolve_path(root))
        self.transform = transform

    def __len__(self) -> int:
        return len(self.list_IDs)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        ID = self.list_IDs[index]
        X = load_tensor(self.path(ID), ID)
        return X if self.transform is None else self.transform(X), self.labels[index]

    def path(self, ID: str) -> str:
        """The sample's file."""
        return f"{self.root}/{ID}.pt"


def load_tensor(path: str, ID: str) -> Tensor:
    """The tensor in a file that torch.save wrote.

    Never runs code from the file, and never retries in a way that would.

    Raises:
        SampleError: the file is missing, empty, damaged, needs code to load, or holds no single dense tensor.
    """
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise SampleError(f"sample {ID!r} ({path}): {_reason(path, error)}", ID=ID, path=path) from error
    if not isinstance(value, Tensor):
        kind = type(value).__name__
        raise SampleError(f"sample {ID!r} ({path}): holds a {kind}; save the tensor X alone", ID=ID, path=path)
    if value.layout != torch.strided:
        raise SampleError(f"sample {ID!r} ({path}): is sparse; save X.to_dense()", ID=ID, path=path)
    logical = value.numel() * value.element_size()
    if logical > MAX_EXPANDED_BYTES and logical > 2 * Path(path).stat().st_size:
        text = f"expands to {logical / 1e9:,.1f} GB, far more than its file; save X.contiguous() or remove the sample"
        raise SampleError(f"sample {ID!r} ({path}): {text}", ID=ID, path=path)
    return value.detach()


def _reason(path: str, error: Exception) -> str:
    """What is wrong with the file, and the remedy; torch's own texts name neither, and advise unsafe loading."""
    file = Path(path)
    if isinstance(error, FileNotFoundError):
        return "no such file; restore it, or take the ID out of the partition"
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror or error}); restore it"
    size = file.stat().st_size
    if size == 0:
        return "is an empty file; restore it, or take the ID out of the partition"
    with file.open("rb") as opened:
        head = opened.read(4)
    if head == b"PK\x03\x04" and not zipfile.is_zipfile(file):
        return f"is truncated ({size:,} bytes); restore it, or take the ID out of the partition"
    if (
        isinstance(error, UnpicklingError)
        and "Weights only load failed" in str(error)
        and head[:2] in (b"PK", b"\x80\x02")
    ):
        return "needs code to load, which is refused; save a tensor with torch.save(X, path)"
    if head == b"PK\x03\x04":
        return "is damaged; restore it, or take the ID out of the partition"
    return "is not a file that torch.save wrote; save it with torch.save(X, path)"


def _aligned(list_IDs: IDs, labels: Mapping[str, Any]) -> Tensor | list[Any]:
    """Labels in the order of the IDs: a tensor that workers share, or a list where they are no numbers."""
    if isinstance(labels, Labels):
        if labels.list_IDs is list_IDs:
            return labels.tensor
        return labels.tensor[[labels.position(ID) for ID in list_IDs]]
    if missing := [ID for ID in list_IDs if ID not in labels]:
        shown = ", ".join(repr(ID) for ID in missing[:5])
        raise UserError(f"labels: IDs without a label: {shown} ({len(missing):,} in all); add them to the dictionary")
    values = [labels[ID] for ID in list_IDs]
    kinds = {type(value) for value in values}
    if kinds and kinds <= {int, bool}:
        return torch.tensor(values, dtype=torch.int64)
    if kinds and kinds <= {int, float}:
        return torch.tensor(values, dtype=torch.float32)
    if kinds == {list} and len({len(value) for value in values}) == 1:
        return torch.tensor(values, dtype=torch.float32)
    return values
