"""Writes one shard: loads its samples into memory, writes the file whole or not at all, and reads it back."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from feedrate.dataset.formats.memory import memory_of
from feedrate.dataset.ids import IDs
from feedrate.dataset.probe import probe
from feedrate.dataset.shards.shard import KEY, Form
from feedrate.dataset.shards.shard_index import ShardEntry, names_crc
from feedrate.dataset.shards.stale import Fingerprint, fingerprint, sha256_of
from feedrate.dataset.subset import ID_of, path_of
from feedrate.dataset.writing.output_folder import PARTIAL
from feedrate.errors import SampleError
from feedrate.system.folder import sync_folder

TRIES = 3  # of loading a sample whose file changes meanwhile
REPORTED = 64  # samples between two reports of progress
_NO_FILE = Fingerprint(-1, 0, bytes(32))
# dtypes that safetensors can store
DTYPES = (
    "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "bfloat16", "float32",
    "float64", "float8_e4m3fn", "float8_e5m2",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """A shard to write: the samples [start, stop) of a partition."""

    partition: str
    number: int
    start: int
    stop: int

    @property
    def file(self) -> str:
        return f"{self.partition}-{self.number:05d}.safetensors"


def forms_of(sample: Any, ID: str) -> tuple[Form, Form]:
    """The forms of X and y of a sample.

    Raises:
        SampleError: one of them cannot be packed.
    """
    return _packable(sample[0], "X", ID)[0], _packable(sample[1], "y", ID)[0]


def _packable(value: Any, name: str, ID: str) -> tuple[Form, Tensor]:
    """The form of X or y, and the tensor that is packed for it."""
    kinds = {Tensor: "tensor", np.ndarray: "array", np.generic: "numpy", bool: "bool", int: "int", float: "float"}
    kind = next((kind for of, kind in kinds.items() if isinstance(value, of)), "")
    if not kind:
        fault = f"is a {type(value).__name__}"
    elif kind == "tensor" and (value.layout != torch.strided or value.is_nested or value.is_quantized):
        fault = "is no dense tensor"
    else:
        try:
            found = value.detach().cpu() if kind == "tensor" else _tensor(value, kind)
            dtype = str(found.dtype).removeprefix("torch.")
            if dtype in DTYPES:
                return Form(kind, dtype, tuple(found.shape)), found
            fault = f"has the dtype {dtype}"
        except (TypeError, ValueError, RuntimeError, OverflowError):
            fault = f"has a type unknown to torch ({getattr(value, 'dtype', kind)})"
    raise SampleError(
        f"sample {ID!r} cannot be packed: {name} {fault}; return a dense tensor, an array or a number of one of these "
        f"dtypes: {', '.join(DTYPES)}",
        ID=ID,
    )


def _tensor(value: Any, kind: str) -> Tensor:
    if kind in ("array", "numpy"):
        return torch.from_numpy(np.array(value, order="C"))
    found: Tensor = default_collate([value])
    return found[0]


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

    def __call__(self, plans: list[Plan]) -> Iterator[tuple[int, tuple[Plan, ShardEntry] | None]]:
        """Writes the shards of these plans; yields the number of further samples loaded, and each shard when whole.

        Raises:
            SampleError: a sample cannot be loaded or packed.
            OSError: the file cannot be written, or differs when it is read back.
        """
        for plan in plans:
            rows = _Rows(plan.stop - plan.start, self.X, self.y)
            reported = plan.start
            for index in range(plan.start, plan.stop):
                rows.add(*self._load(plan, index))
                if index + 1 - reported == REPORTED or index + 1 == plan.stop:
                    yield index + 1 - reported, None
                    reported = index + 1
            yield 0, (plan, self._write(plan, rows.tensors()))

    def _load(self, plan: Plan, index: int) -> tuple[str, Tensor, Tensor, Fingerprint]:
        """ID, X, y, and the fingerprint of the file that they were read from."""
        dataset = self.datasets[plan.partition]
        ID, target = ID_of(dataset, index), type(dataset).__name__
        path = source_path(dataset, ID)
        if path is None:
            return ID, *self._checked(probe(dataset, index, target, self.seed), ID), _NO_FILE
        for _ in range(TRIES):
            before = os.stat(path)  # noqa: PTH116
            sample = probe(dataset, index, target, self.seed)
            after = fingerprint(path)
            if (before.st_size, before.st_mtime_ns) == (after.size, after.mtime_ns):
                return ID, *self._checked(sample, ID), after
        raise SampleError(f"sample {ID!r} ({path}): is being written to; wait for that to end", ID=ID, path=path)

    def _checked(self, sample: Any, ID: str) -> tuple[Tensor, Tensor]:
        (X_form, X), (y_form, y) = _packable(sample[0], "X", ID), _packable(sample[1], "y", ID)
        for name, form, first in (("X", X_form, self.X), ("y", y_form, self.y)):
            same_shape = form.shape == first.shape if name == "y" else len(form.shape) == len(first.shape)
            if form.kind != first.kind:
                difference = f"is of the type {form.kind}, not {first.kind}"
            elif form.dtype != first.dtype:
                difference = f"has dtype {form.dtype}, not {first.dtype}"
            elif not same_shape:
                difference = f"has shape {form.shape}, not {first.shape}"
            else:
                continue
            remedy = "make them equal, or take the ID out of the partition"
            raise SampleError(
                f"sample {ID!r} cannot be packed: {name} {difference} as in the first sample; {remedy}", ID=ID
            )
        return X, y

    def _write(self, plan: Plan, tensors: dict[str, Tensor]) -> ShardEntry:
        header = {"partition": plan.partition, "start": plan.start, "X": asdict(self.X), "y": asdict(self.y)}
        temporary = self.root / f"{PARTIAL}{plan.file}"
        try:
            save_file(tensors, temporary, metadata={KEY: json.dumps(header)})
            temporary.chmod(0o666 & ~_umask())  # safetensors makes the file readable for its owner only
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
                if hasattr(os, "posix_fadvise"):  # so that the comparison reads from the disk, not from memory
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            with safe_open(temporary, "pt") as written:
                equal = all(same_bytes(written.get_tensor(name), X) for name, X in tensors.items())
        except SafetensorError as error:
            raise OSError(f"{error}") from None
        if not equal:
            raise OSError(f"{plan.file} differs when it is read back; the disk may be at fault")
        crc = names_crc(tensors["ID.text"], tensors["ID.ends"], tensors["y"])
        size, sha256 = temporary.stat().st_size, sha256_of(temporary).hex()
        temporary.replace(self.root / plan.file)
        sync_folder(self.root)
        return ShardEntry(plan.file, plan.stop - plan.start, size, sha256, crc)


class _Rows:
    """The samples of a shard, collected one by one; X end to end in one buffer."""

    def __init__(self, count: int, X: Form, y: Form) -> None:
        self._dtype = X.torch_dtype
        self._content = bytearray()
        self._shapes: list[tuple[int, ...]] = []
        self._y = torch.empty((count, *y.shape), dtype=y.torch_dtype)
        self._IDs: list[str] = []
        self._crc = torch.empty(count, dtype=torch.int64)
        self._size, self._mtime = torch.empty(count, dtype=torch.int64), torch.empty(count, dtype=torch.int64)
        self._sha = torch.empty((count, 32), dtype=torch.uint8)

    def add(self, ID: str, X: Tensor, y: Tensor, source: Fingerprint) -> None:
        at, content = len(self._IDs), memory_of(X.contiguous())
        self._content += content
        self._shapes.append(tuple(X.shape))
        self._crc[at] = zlib.crc32(content)
        self._y[at] = y
        self._IDs.append(ID)
        self._size[at], self._mtime[at] = source.size, source.mtime_ns
        self._sha[at] = torch.frombuffer(bytearray(source.sha256), dtype=torch.uint8)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the shard by name."""
        names = IDs(self._IDs)
        found = {
            "y": self._y, "ID.text": names.text, "ID.ends": names.ends, "crc32": self._crc,
            "source.size": self._size, "source.mtime_ns": self._mtime, "source.sha256": self._sha,
        }  # fmt: skip
        X = torch.frombuffer(self._content, dtype=self._dtype) if self._content else torch.empty(0, dtype=self._dtype)
        if len(set(self._shapes)) == 1:
            return {"X": X.view(len(self._shapes), *self._shapes[0]), **found}
        ends = torch.from_numpy(np.cumsum([prod(shape) for shape in self._shapes], dtype=np.int64))
        shapes = torch.tensor(self._shapes, dtype=torch.int64)
        return {"X.values": X, "X.ends": ends, "X.shapes": shapes, **found}


def same_bytes(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same shape, dtype and bytes, so that NaN equals itself."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(*(value.contiguous().reshape(-1).view(torch.uint8) for value in (a, b)))


def _umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found


def source_path(dataset: Any, ID: str) -> str | None:
    """The existing file of a sample, where the dataset has a method `path(ID)`."""
    path = path_of(dataset, ID)
    return path if path is not None and Path(path).is_file() else None
