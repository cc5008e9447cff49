"""The one big file of all (X, y) that people start from, opened so that memory holds a sample of it and not the whole.

Splitting it into partitions and writing the samples are done elsewhere.
"""

from __future__ import annotations

import math
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from feedrate.config import nearby
from feedrate.errors import UserError

SUFFIXES = (".pt", ".pth", ".npz")
_REMEDY = "save it with torch.save((X, y), 'all.pt'), X and y being tensors"
_UNPACKED = "X.npy"  # the compressed X of an .npz archive, unpacked


@dataclass(frozen=True)
class BigFile:
    """What a big file holds, but for X itself.

    Attributes:
        path: the file.
        y: (N,) or (N, K); integers or texts are classes, floats and vectors are quantities.
        sample_shape, sample_dtype: of one X.
        unpack_bytes: room on disk that reading X takes; 0 unless it is compressed.
    """

    path: Path
    y: NDArray[Any]
    sample_shape: tuple[int, ...]
    sample_dtype: torch.dtype
    unpack_bytes: int

    def __len__(self) -> int:
        return len(self.y)

    @classmethod
    def read(cls, path: Path) -> BigFile:
        """Checks a file: .pt or .pth with the pair (X, y) or {'X': ..., 'y': ...}, or .npz with the arrays X and y.

        Raises:
            UserError: there is no such file, it is damaged, needs code to load, or holds something else.
        """
        if path.suffix.lower() not in SUFFIXES:
            raise UserError(f"source={path}: its ending must be one of {', '.join(SUFFIXES)}; {_REMEDY}")
        if not path.exists():
            raise UserError(f"source={path}: no such file{nearby(path)}")
        if not path.is_file():
            raise UserError(f"source={path}: is a folder; name the file that holds X and y")
        if path.suffix.lower() == ".npz":
            shape, dtype, y, unpack_bytes = _read_npz(path)
        else:
            X, labels = _load_pt(path)
            shape, dtype, y, unpack_bytes = tuple(X.shape), X.dtype, _as_labels(path, labels), 0
        if not shape:
            raise UserError(f"source={path}: X is a single number; its first dimension must count the samples")
        if len(y) != shape[0]:
            raise UserError(
                f"source={path}: X has {shape[0]:,} samples and y has {len(y):,}; they must be equally many"
            )
        if 0 in shape[1:]:
            raise UserError(
                f"source={path}: X has the shape {shape}, so a sample holds nothing; save X with its numbers"
            )
        return cls(path, y, shape[1:], dtype, unpack_bytes)

    def unpack(self, folder: Path, prefix: str) -> None:
        """Writes the X of a compressed archive to a file `folder`/`prefix`X.npy, from which samples can be read."""
        if self.unpack_bytes:
            with (
                zipfile.ZipFile(self.path) as archive,
                archive.open(_member(archive, "X")) as packed,
                (folder / f"{prefix}{_UNPACKED}").open("wb") as file,
            ):
                try:
                    shutil.copyfileobj(packed, file, 1 << 20)
                except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                    raise UserError(f"source={self.path}: X is damaged ({error}); save or copy it again") from error

    def open_X(self, folder: Path, prefix: str) -> Tensor:
        """X (N, *sample_shape), mapped from disk: only what is touched is read.

        Args:
            folder, prefix: as given to `unpack`, which has been called.
        """
        if self.path.suffix.lower() != ".npz":
            return _load_pt(self.path)[0]
        if self.unpack_bytes:
            mapped = np.load(folder / f"{prefix}{_UNPACKED}", mmap_mode="c", allow_pickle=False)
        else:
            with zipfile.ZipFile(self.path) as archive:
                shape, fortran, dtype, start = _header(archive, self.path, "X")
            mapped = np.memmap(self.path, dtype, "c", offset=start, shape=shape, order="F" if fortran else "C")
        return torch.from_numpy(mapped)


# ---------------------------------------------------------------------------------------------------------
# .pt
# ---------------------------------------------------------------------------------------------------------


def _load_pt(path: Path) -> tuple[Tensor, Any]:
    try:
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise UserError(f"source={path}: {_reason(path, error)}") from error
    if isinstance(value, Mapping):
        if missing := [key for key in ("X", "y") if key not in value]:
            held = ", ".join(repr(key) for key in list(value)[:5]) or "nothing"
            raise UserError(
                f"source={path}: its dictionary has no {' and no '.join(missing)} (it has {held}); {_REMEDY}"
            )
        X, y = value["X"], value["y"]
    elif isinstance(value, (tuple, list)) and len(value) == 2:
        X, y = value
    else:
        kind = f"{len(value)} things" if isinstance(value, (tuple, list)) else f"a {type(value).__name__}"
        raise UserError(f"source={path}: holds {kind}, not the pair (X, y); {_REMEDY}")
    if not isinstance(X, Tensor):
        raise UserError(f"source={path}: X is a {type(X).__name__}, not a tensor; {_REMEDY}")
    if X.layout == torch.strided and X.numel() * X.element_size() > X.untyped_storage().nbytes():
        raise UserError(f"source={path}: X repeats its numbers (torch.Tensor.expand); save X.clone()")
    if X.layout != torch.strided or X.is_quantized:
        raise UserError(f"source={path}: X is sparse or quantized; save X.to_dense() or X.dequantize()")
    return X.detach(), y


def _reason(path: Path, error: Exception) -> str:
    """What is wrong with the file; torch's own texts advise loading that runs code."""
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror or error})"
    with path.open("rb") as file:
        head = file.read(4)
    if not head:
        return "is an empty file; save it again"
    if head == b"PK\x03\x04":
        if not zipfile.is_zipfile(path):
            return f"is truncated ({path.stat().st_size:,} bytes); save or copy it again"
        if isinstance(error, UnpicklingError):
            return f"holds more than tensors and needs code to load, which is refused; {_REMEDY}"
        return "is damaged; save or copy it again"
    if head[:1] == b"\x80":
        return f"is a pickle, or in the form of torch before 1.6; {_REMEDY}"
    return f"is not a file that torch.save wrote; {_REMEDY}"


# ---------------------------------------------------------------------------------------------------------
# .npz
# ---------------------------------------------------------------------------------------------------------


def _read_npz(path: Path) -> tuple[tuple[int, ...], torch.dtype, NDArray[Any], int]:
    try:
        with zipfile.ZipFile(path) as archive:
            shape, _, dtype, _ = _header(archive, path, "X")
            _header(archive, path, "y")  # refuses Python objects
            with archive.open(_member(archive, "y")) as file:
                y = np.lib.format.read_array(file, allow_pickle=False)
            member = archive.getinfo(_member(archive, "X"))
            if member.file_size < math.prod(shape) * dtype.itemsize:
                raise UserError(f"source={path}: X is shorter than its header states; save it again")
            unpack_bytes = member.file_size if member.compress_type != zipfile.ZIP_STORED else 0
    except UserError:
        raise
    except Exception as error:
        text = str(error).strip() or type(error).__name__
        raise UserError(f"source={path}: is no whole .npz archive ({text}); save or copy it again") from error
    try:
        sample_dtype = torch.from_numpy(np.empty(0, dtype=dtype)).dtype
    except (TypeError, ValueError):
        raise UserError(
            f"source={path}: X has the type {dtype}, which torch does not know; save X.astype(...)"
        ) from None
    return shape, sample_dtype, _as_labels(path, y), unpack_bytes


def _member(archive: zipfile.ZipFile, name: str) -> str:
    member = f"{name}.npy"
    if member not in archive.namelist():
        held = ", ".join(Path(found).stem for found in archive.namelist()[:5]) or "nothing"
        raise UserError(
            f"source={archive.filename}: has no array {name} (it has {held}); use np.savez('all.npz', X=X, y=y)"
        )
    return member


def _header(archive: zipfile.ZipFile, path: Path, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, whether columns come first, type, and the byte at which the numbers begin if not compressed.

    Source: NumPy's NEP 1 (.npy) and PKWARE's APPNOTE 4.3.7 (local file header of a zip member).
    """
    member = _member(archive, name)
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        length = file.tell()
    if dtype.hasobject:
        raise UserError(f"source={path}: {name} holds Python objects, which need code to load; save numbers or texts")
    with path.open("rb") as raw:
        raw.seek(archive.getinfo(member).header_offset + 26)
        lengths = raw.read(4)  # of the member's name and of its extra field, which end the header of 30 bytes
    skipped = int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
    return shape, fortran, dtype, archive.getinfo(member).header_offset + 30 + skipped + length


# ---------------------------------------------------------------------------------------------------------
# y
# ---------------------------------------------------------------------------------------------------------


def _as_labels(path: Path, y: Any) -> NDArray[Any]:
    """Labels as an array (N,) of integers, floats or texts, or (N, K) of numbers."""
    labels: NDArray[Any]
    if isinstance(y, Tensor):
        y = y.detach()
        labels = (y.float() if y.dtype == torch.bfloat16 else y).numpy()
    else:
        try:
            labels = np.asarray(y)
        except ValueError:
            labels = np.asarray(None)
    if labels.dtype.kind == "b":
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iufU" or (isinstance(y, list) and len({type(value) for value in y}) > 1):
        raise UserError(f"source={path}: y must hold integers, floats or texts, not mixed; it holds {_kind(y, labels)}")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim not in (1, 2) or (labels.ndim == 2 and (labels.shape[1] == 0 or labels.dtype.kind == "U")):
        raise UserError(
            f"source={path}: y has the shape {labels.shape}; (N,) is a label for each sample, (N, K) a vector"
        )
    if labels.dtype.kind == "f":
        wrong = np.flatnonzero(~np.isfinite(labels).reshape(len(labels), -1).all(axis=1))
        if len(wrong):
            shown = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
            raise UserError(
                f"source={path}: y is NaN or infinite at {shown} ({len(wrong):,} in all); take these samples out"
            )
    return labels


def _kind(y: Any, labels: NDArray[Any]) -> str:
    if isinstance(y, list):
        return "a list of " + (", ".join(sorted({type(value).__name__ for value in y})[:4]) or "nothing")
    return str(labels.dtype) if isinstance(y, (Tensor, np.ndarray)) else f"a {type(y).__name__}"
