"""Makes one shard: loads its samples into memory, writes the file whole or not at all, and reads it back.

Which shards are to be made is decided in pack.py; memory holds one shard at a time, and no sample twice.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
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
from feedrate.dataset.output_folder import PARTIAL
from feedrate.dataset.probe import probe
from feedrate.dataset.shards.shard import KEY, Damaged, Form, read_places
from feedrate.dataset.shards.shard_index import ShardEntry, names_crc
from feedrate.dataset.shards.stale import Fingerprint, fingerprint
from feedrate.dataset.subset import list_IDs
from feedrate.errors import SampleError
from feedrate.system.folder import sync_folder

TRIES = 3  # of loading a sample whose file changes meanwhile
REPORTED = 64  # samples after which progress is told
_NO_FILE = Fingerprint(-1, 0, bytes(32))
# dtypes that a safetensors file can hold, of those that a sample can have
DTYPES = (
    "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "bfloat16", "float32",
    "float64", "float8_e4m3fn", "float8_e5m2",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """A shard to be made: the samples [start, stop) of a partition."""

    partition: str
    number: int
    start: int
    stop: int

    @property
    def file(self) -> str:
        return f"{self.partition}-{self.number:05d}.safetensors"


def forms_of(sample: Any, ID: str) -> tuple[Form, Form]:
    """What X and y of a sample are.

    Raises:
        SampleError: one of them cannot be packed.
    """
    return _leaf(sample[0], "X", ID)[0], _leaf(sample[1], "y", ID)[0]


def _leaf(value: Any, name: str, ID: str) -> tuple[Form, Tensor]:
    """A part of a sample, and the tensor that is packed for it."""
    kind = (
        "tensor" if isinstance(value, Tensor)
        else "array" if isinstance(value, np.ndarray)
        else "numpy" if isinstance(value, np.generic)
        else type(value).__name__
    )  # fmt: skip
    fault = None
    if kind not in ("tensor", "array", "numpy", "int", "float", "bool"):
        fault = f"is a {kind}"
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
            fault = f"is of a type that torch has not ({getattr(value, 'dtype', kind)})"
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


class ShardMaker:
    """Makes shards of one dataset.

    Args:
        datasets: by partition.
        seed: of the run; what a sample draws at random is that of epoch 0.
        X, y: what they are in the first sample; all others must be like it, but for the shape of X.
        root: folder to write to.
    """

    def __init__(self, datasets: dict[str, Dataset[Any]], seed: int, X: Form, y: Form, root: Path) -> None:
        self.datasets, self.seed, self.X, self.y, self.root = datasets, seed, X, y, root

    def __call__(self, plans: list[Plan]) -> Iterator[tuple[int, tuple[Plan, ShardEntry] | None]]:
        """Makes the shards of these plans; yields how many further samples are done, and each shard when it is.

        Raises:
            SampleError: a sample cannot be loaded or packed.
            OSError: the file cannot be written, or is not what was written when it is read back.
        """
        for plan in plans:
            rows = _Rows(plan.stop - plan.start, self.y)
            told = plan.start
            for index in range(plan.start, plan.stop):
                ID, sample, source = self._load(plan, index)
                rows.add(ID, *self._checked(sample, ID), source)
                if index + 1 - told == REPORTED or index + 1 == plan.stop:
                    yield index + 1 - told, None
                    told = index + 1
            yield 0, (plan, self._write(plan, rows.tensors()))

    def _load(self, plan: Plan, index: int) -> tuple[str, Any, Fingerprint]:
        """ID, sample, and the fingerprint of the file that it was read from."""
        dataset = self.datasets[plan.partition]
        names = list_IDs(dataset)
        ID = str(index) if names is None else names[index]
        path = source_path(dataset, ID)
        if path is None:
            return ID, probe(dataset, index, type(dataset).__name__, self.seed), _NO_FILE
        for _ in range(TRIES):
            before = os.stat(path)  # noqa: PTH116
            sample = probe(dataset, index, type(dataset).__name__, self.seed)
            found = fingerprint(path)
            if (before.st_size, before.st_mtime_ns) == (found.size, found.mtime_ns):
                return ID, sample, found
        raise SampleError(f"sample {ID!r} ({path}): is being written to; wait for that to end", ID=ID, path=path)

    def _checked(self, sample: Any, ID: str) -> tuple[Tensor, Tensor]:
        (X_form, X), (y_form, y) = _leaf(sample[0], "X", ID), _leaf(sample[1], "y", ID)
        for name, form, first in (("X", X_form, self.X), ("y", y_form, self.y)):
            difference = _difference(form, first, fixed=name == "y")
            if difference:
                raise SampleError(
                    f"sample {ID!r} cannot be packed: {name} {difference} in the first sample; make them alike, or "
                    "take the ID out of the partition",
                    ID=ID,
                )
        return X, y

    def _write(self, plan: Plan, tensors: dict[str, Tensor]) -> ShardEntry:
        header = {"partition": plan.partition, "start": plan.start, "X": asdict(self.X), "y": asdict(self.y)}
        temporary = self.root / f"{PARTIAL}{plan.file}"
        try:
            save_file(tensors, temporary, metadata={KEY: json.dumps(header)})
            temporary.chmod(0o666 & ~_umask())  # the library lets nobody else read it
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
                if hasattr(os, "posix_fadvise"):  # what is compared comes from the disk, not from memory
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            sha256 = _read_back(temporary, tensors)
        except SafetensorError as error:
            raise OSError(f"{error}") from None
        size = temporary.stat().st_size
        temporary.replace(self.root / plan.file)
        sync_folder(self.root)
        crc = names_crc(tensors["ID.text"], tensors["ID.ends"], tensors["y"])
        return ShardEntry(plan.file, plan.stop - plan.start, size, sha256, crc)


def _difference(form: Form, first: Form, fixed: bool) -> str:
    if form.kind != first.kind:
        return f"is of the type {form.kind}, not {first.kind} as"
    if form.dtype != first.dtype:
        return f"has dtype {form.dtype}, not {first.dtype} as"
    if len(form.shape) != len(first.shape) or (fixed and form.shape != first.shape):
        return f"has shape {form.shape}, not {first.shape} as"
    return ""


class _Rows:
    """The samples of a shard, as they come; in one tensor as long as their shapes are alike."""

    def __init__(self, count: int, y: Form) -> None:
        self._count = count
        self._whole: Tensor | None = None
        self._single: list[Tensor] = []
        self._shapes: list[tuple[int, ...]] = []
        self._y = torch.empty((count, *y.shape), dtype=y.torch_dtype)
        self._IDs: list[str] = []
        self._crc = torch.empty(count, dtype=torch.int64)
        self._size, self._mtime = torch.empty(count, dtype=torch.int64), torch.empty(count, dtype=torch.int64)
        self._sha = torch.empty((count, 32), dtype=torch.uint8)

    def add(self, ID: str, X: Tensor, y: Tensor, source: Fingerprint) -> None:
        at = len(self._IDs)
        X = X.contiguous()
        if at == 0:
            self._whole = torch.empty((self._count, *X.shape), dtype=X.dtype)
        elif self._whole is not None and X.shape != self._whole.shape[1:]:  # from here on they lie end to end
            self._single = [row.reshape(-1).clone() for row in self._whole[:at]]
            self._whole = None
        if self._whole is not None:
            self._whole[at] = X
        else:
            self._single.append(X.reshape(-1).clone())
        self._shapes.append(tuple(X.shape))
        self._crc[at] = zlib.crc32(memoryview(X.reshape(-1).view(torch.uint8).numpy().data))
        self._y[at] = y
        self._IDs.append(ID)
        self._size[at], self._mtime[at] = source.size, source.mtime_ns
        self._sha[at] = torch.frombuffer(bytearray(source.sha256), dtype=torch.uint8)

    def tensors(self) -> dict[str, Tensor]:
        """By the names that a shard has them under; these rows are used up."""
        names = IDs(self._IDs)
        found = {
            "y": self._y, "ID.text": names.text, "ID.ends": names.ends, "crc32": self._crc,
            "source.size": self._size, "source.mtime_ns": self._mtime, "source.sha256": self._sha,
        }  # fmt: skip
        if self._whole is not None:
            return {"X": self._whole, **found}
        sizes = np.array([math.prod(shape) for shape in self._shapes], dtype=np.int64)
        ends = np.cumsum(sizes)
        values = torch.empty(int(ends[-1]), dtype=self._single[0].dtype)
        self._single.reverse()
        for begin, end in zip((ends - sizes).tolist(), ends.tolist(), strict=True):
            values[begin:end] = self._single.pop()
        shapes = torch.tensor(self._shapes, dtype=torch.int64).view(self._count, -1)
        return {"X.values": values, "X.ends": torch.from_numpy(ends), "X.shapes": shapes, **found}


def _read_back(path: Path, tensors: dict[str, Tensor]) -> str:
    """SHA-256 of a file that holds just these tensors; read piece by piece, so that memory holds no shard twice.

    Raises:
        OSError: it holds something else.
    """
    digest = hashlib.sha256()
    fault = OSError(f"{path.name} is not what was written when it is read back; the disk may be at fault")
    try:
        places = sorted(read_places(str(path)).items(), key=lambda item: (item[1].begin, item[1].end))
    except Damaged:
        raise fault from None
    with path.open("rb") as file:
        digest.update(file.read(places[0][1].begin))
        for name, place in places:
            expected = memory_of(tensors[name])
            if place.shape != tuple(tensors[name].shape) or place.end - place.begin != len(expected):
                raise fault
            while len(expected):
                part = file.read(min(len(expected), 1 << 20))
                digest.update(part)
                if not part or part != bytes(expected[: len(part)]):  # of a memoryview itself, element by element
                    raise fault
                expected = expected[len(part) :]
        if len(places) != len(tensors) or file.read(1):
            raise fault
    return digest.hexdigest()


def _umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found


def source_path(dataset: Any, ID: str) -> str | None:
    """The file of a sample, where the dataset says it."""
    found = getattr(dataset, "path", None)
    try:
        path = str(found(ID)) if callable(found) else None
    except Exception:  # a method of that name that means something else
        return None
    return path if path is not None and Path(path).is_file() else None
