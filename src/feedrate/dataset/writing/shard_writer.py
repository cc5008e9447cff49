"""Writes shards: loads the samples of each into memory, and writes the file whole or not at all."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from feedrate.dataset.formats.memory import memory_of
from feedrate.dataset.ids import IDs
from feedrate.dataset.probe import probe
from feedrate.dataset.shards.shard import KEY, Form
from feedrate.dataset.shards.stale import fingerprint
from feedrate.dataset.subset import ID_of, path_of
from feedrate.dataset.writing.output_folder import PARTIAL
from feedrate.errors import SampleError
from feedrate.system.files import sync_folder

REPORTED = 64  # samples between two reports of progress
# dtypes that safetensors can store
DTYPES = (
    "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "bfloat16", "float32",
    "float64", "float8_e4m3fn", "float8_e5m2",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """A shard to write: the samples [start, stop) of a partition.

    Attributes:
        file: its name.
        key: hash of what it is made of, without the content of the samples' files.
    """

    partition: str
    file: str
    start: int
    stop: int
    key: str = ""


def packable(value: Any, name: str, ID: str) -> tuple[Form, Tensor]:
    """The form of X or y of a sample, and the tensor that is packed for it.

    Raises:
        SampleError: it cannot be packed.
    """
    kinds = {Tensor: "tensor", np.ndarray: "array", np.generic: "numpy", bool: "bool", int: "int", float: "float"}
    kind = next((kind for of, kind in kinds.items() if isinstance(value, of)), "")
    try:
        if kind == "tensor":
            found = value.detach().cpu()
        elif kind in ("array", "numpy"):
            found = torch.from_numpy(np.array(value, order="C"))
        else:
            found = default_collate([value])[0] if kind else None
        dtype = str(found.dtype).removeprefix("torch.")
        if dtype in DTYPES and found.layout == torch.strided and not found.is_nested:
            return Form(kind, dtype, tuple(found.shape)), found
    except (AttributeError, TypeError, ValueError, RuntimeError, OverflowError):
        pass
    of = f" of dtype {value.dtype}" if hasattr(value, "dtype") else ""
    rule = "return a dense tensor, an array or a number of one of these dtypes"
    raise SampleError(
        f"sample {ID!r} cannot be packed: {name} is a {type(value).__name__}{of}; {rule}: {', '.join(DTYPES)}", ID=ID
    )


def source_path(dataset: Any, ID: str) -> str | None:
    """The existing file of a sample, where the dataset has a method `path(ID)`."""
    path = path_of(dataset, ID)
    return path if path is not None and Path(path).is_file() else None


class ShardWriter:
    """Writes shards of one dataset.

    Args:
        datasets: by partition.
        seed: of the run; random numbers of samples are those of epoch 0.
        X, y: forms of the first sample, which all others must have, but for the shape of X.
        root: folder to write to.
    """

    def __init__(self, datasets: Mapping[str, Dataset[Any]], seed: int, X: Form, y: Form, root: Path) -> None:
        self.datasets, self.seed, self.X, self.y, self.root = datasets, seed, X, y, root

    def __call__(self, plans: list[Plan]) -> Iterator[tuple[int, Plan | None]]:
        """Writes the shards of these plans; yields the number of further samples loaded, and each shard when whole.

        Raises:
            SampleError: a sample cannot be loaded or packed.
            OSError: the file cannot be written.
        """
        for plan in plans:
            content, shapes, labels = bytearray(), [], []
            list_IDs, crcs, sources = [], [], []
            for index in range(plan.start, plan.stop):
                dataset = self.datasets[plan.partition]
                ID = ID_of(dataset, index)
                sources.append(fingerprint(source_path(dataset, ID)))  # before, so that a later write shows
                X, y = self._load(dataset, index, ID)
                content += memory_of(X.contiguous())
                shapes.append(tuple(X.shape))
                crcs.append(zlib.crc32(memory_of(X.contiguous())))
                labels.append(y)
                list_IDs.append(ID)
                if len(list_IDs) % REPORTED == 0:
                    yield REPORTED, None
            names, dtype = IDs(list_IDs), self.X.torch_dtype
            X = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
            tensors = {
                "y": torch.stack(labels), "ID.text": names.text, "ID.ends": names.ends,
                "crc32": torch.tensor(crcs, dtype=torch.int64), "source": torch.tensor(sources, dtype=torch.int64),
            }  # fmt: skip
            if len(set(shapes)) == 1:
                tensors["X"] = X.view(len(shapes), *shapes[0])
            else:
                ends = torch.from_numpy(np.cumsum([prod(shape) for shape in shapes], dtype=np.int64))
                tensors |= {"X.values": X, "X.ends": ends, "X.shapes": torch.tensor(shapes, dtype=torch.int64)}
            self._write(plan, tensors)
            yield len(list_IDs) % REPORTED, plan

    def _load(self, dataset: Dataset[Any], index: int, ID: str) -> tuple[Tensor, Tensor]:
        sample = probe(dataset, index, type(dataset).__name__, self.seed)
        (X_form, X), (y_form, y) = packable(sample[0], "X", ID), packable(sample[1], "y", ID)
        for name, form, first in (("X", X_form, self.X), ("y", y_form, self.y)):
            same = form.shape == first.shape if name == "y" else len(form.shape) == len(first.shape)
            if (form.kind, form.dtype) != (first.kind, first.dtype) or not same:
                fault = f"{name} is {form}, not {first} as in the first sample"
                remedy = "make them equal, or take the ID out of the partition"
                raise SampleError(f"sample {ID!r} cannot be packed: {fault}; {remedy}", ID=ID)
        return X, y

    def _write(self, plan: Plan, tensors: dict[str, Tensor]) -> None:
        temporary = self.root / f"{PARTIAL}{plan.file}"
        try:
            save_file(tensors, temporary, metadata={KEY: plan.key})
        except SafetensorError as error:
            raise OSError(f"{error}") from None
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # safetensors makes the file readable for its owner only
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(self.root / plan.file)
        sync_folder(self.root)
