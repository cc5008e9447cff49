"""Reads the one file of all (X, y) that src/prepare.py splits; X stays on disk and is mapped."""

from __future__ import annotations

import math
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from feedrate.config import nearby
from feedrate.dataset.formats.pt_file import fault_of
from feedrate.dataset.labels import read_labels, single
from feedrate.errors import UserError

SUFFIXES = (".pt", ".pth", ".npz")
_SAVE = "save it with torch.save((X, y), 'all.pt'), X and y being tensors"


@dataclass(frozen=True)
class BigFile:
    """The content of a .pt, .pth or .npz file, without X itself.

    Attributes:
        path: the file.
        y: a label for each sample: a number, a text, true or false, or a list of numbers.
        sample_shape, sample_dtype: of one X.
        unpack_bytes: size of the temporary copy of X that an .npz needs, else 0.
    """

    path: Path
    y: list[Any]
    sample_shape: tuple[int, ...]
    sample_dtype: torch.dtype
    unpack_bytes: int

    def __len__(self) -> int:
        return len(self.y)

    @classmethod
    def read(cls, path: Path) -> BigFile:
        """Checks a file: .pt or .pth with (X, y) or {'X': ..., 'y': ...}, or .npz with the arrays X and y.

        Raises:
            UserError: the file is missing, damaged, needs code to load, or holds something else.
        """
        if path.suffix.lower() not in SUFFIXES:
            raise UserError(f"source={path}: its ending must be one of {', '.join(SUFFIXES)}; {_SAVE}")
        if not path.is_file():
            fault = "is a folder; name the file that holds X and y" if path.exists() else f"no such file{nearby(path)}"
            raise UserError(f"source={path}: {fault}")
        if path.suffix.lower() == ".npz":
            shape, dtype, labels, unpack_bytes = _read_npz(path)
        else:
            X, labels = _load_pt(path)
            shape, dtype, unpack_bytes = tuple(X.shape), X.dtype, 0
        y = _as_labels(path, labels)
        if len(shape) == 0 or len(y) != shape[0]:
            raise UserError(f"source={path}: X has the shape {shape}, y {len(y)} labels; each sample needs one")
        if 0 in shape[1:]:
            raise UserError(f"source={path}: X has the shape {shape}, so samples are empty; save X with its values")
        return cls(path, y, shape[1:], dtype, unpack_bytes)

    def unpack(self, X: Path) -> None:
        """Writes the X of an .npz to the file `X`, which `open_X` maps; does nothing for other files."""
        if not self.unpack_bytes:
            return
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open("X.npy") as packed, X.open("wb") as file:
                shutil.copyfileobj(packed, file, 1 << 20)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise UserError(f"source={self.path}: X is damaged ({error}); save or copy it again") from error

    def open_X(self, X: Path) -> Tensor:
        """X (N, *sample_shape), mapped from disk; `unpack` has been called with the same file `X`."""
        if self.unpack_bytes:
            return torch.from_numpy(np.load(X, mmap_mode="c", allow_pickle=False))
        return _load_pt(self.path)[0]


def _load_pt(path: Path) -> tuple[Tensor, Any]:
    try:
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        fault, resave = fault_of(str(path), error)
        raise UserError(f"source={path}: {fault}; {_SAVE if resave else 'save or copy it again'}") from error
    if isinstance(value, Mapping) and {"X", "y"} <= value.keys():
        value = value["X"], value["y"]
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        kind = f"a {type(value).__name__}"
        if isinstance(value, (Mapping, tuple, list)):
            kind += f" of {', '.join(map(repr, list(value)[:5])) if isinstance(value, Mapping) else len(value)}"
        raise UserError(f"source={path}: holds {kind}, not the pair (X, y); {_SAVE}")
    X, y = value
    if not isinstance(X, Tensor):
        raise UserError(f"source={path}: X is a {type(X).__name__}, not a tensor; {_SAVE}")
    if X.layout != torch.strided or X.is_quantized:
        raise UserError(f"source={path}: X is sparse or quantized; save X.to_dense() or X.dequantize()")
    if X.nbytes > X.untyped_storage().nbytes():
        raise UserError(f"source={path}: X repeats its values (torch.Tensor.expand); save X.clone()")
    return X.detach(), y


def _read_npz(path: Path) -> tuple[tuple[int, ...], torch.dtype, Any, int]:
    """Shape and dtype of X, y, and the bytes of X's file within the archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            if not {"X.npy", "y.npy"} <= {*members}:
                held = ", ".join(Path(name).stem for name in members[:5]) or "nothing"
                raise UserError(f"source={path}: has no arrays X and y (it has {held}); use np.savez(path, X=X, y=y)")
            with archive.open("X.npy") as file:
                old = np.lib.format.read_magic(file) == (1, 0)
                read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(file)
            with archive.open("y.npy") as file:
                y = np.lib.format.read_array(file, allow_pickle=False)
            size = archive.getinfo("X.npy").file_size
            if size < math.prod(shape) * dtype.itemsize:
                raise ValueError("X is shorter than its header states")
    except UserError:
        raise
    except Exception as error:
        if "allow_pickle" in str(error):
            raise UserError(f"source={path}: y needs code to load, which is refused; save numbers or texts") from None
        raise UserError(f"source={path}: is no whole .npz archive ({error}); save or copy it again") from error
    try:
        return shape, torch.from_numpy(np.empty(0, dtype=dtype)).dtype, y, size
    except (TypeError, ValueError):
        raise UserError(f"source={path}: X has the dtype {dtype}, unknown to torch; save X.astype(...)") from None


def _as_labels(path: Path, y: Any) -> list[Any]:
    """Labels as JSON values, checked by the rules of docs/data.md."""
    if isinstance(y, Tensor):
        y = (y.float() if y.dtype == torch.bfloat16 else y).detach().numpy()
    if isinstance(y, np.ndarray):
        y = y.tolist()
    if not isinstance(y, (list, tuple)):
        raise UserError(f"source={path}: y is a {type(y).__name__}; save a tensor, or a list of labels")
    labels = list(single({"": y})[""])
    try:
        read_labels({"train": labels}, {"train": [str(index) for index in range(len(labels))]})
    except UserError as error:
        raise UserError(f"source={path}: {error}") from None
    return labels
