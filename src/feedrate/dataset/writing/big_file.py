"""Reads the one file of all (X, y) that src/prepare.py splits."""

from __future__ import annotations

from collections.abc import Mapping
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


def read_big_file(path: Path) -> tuple[Tensor, list[Any]]:
    """X (N, ...) and a label for each sample: a number, a text, true or false, or a list of numbers.

    Args:
        path: .pt or .pth with (X, y) or {'X': ..., 'y': ...}, whose X stays on disk and is mapped, or .npz with the
            arrays X and y, which is read into memory.

    Raises:
        UserError: the file is missing, damaged, needs code to load, or holds something else.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"source={path}: its ending must be one of {', '.join(SUFFIXES)}; {_SAVE}")
    if not path.is_file():
        fault = "is a folder; name the file that holds X and y" if path.exists() else f"no such file{nearby(path)}"
        raise UserError(f"source={path}: {fault}")
    try:
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                value: Any = {name: arrays[name] for name in arrays}
                value = {**value, "X": torch.from_numpy(value["X"])} if "X" in value else value
        else:
            value = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        fault = f"cannot be read ({error})" if path.suffix.lower() == ".npz" else fault_of(str(path), error)
        raise UserError(f"source={path}: {fault}; copy it again, or {_SAVE}") from error
    if isinstance(value, Mapping) and {"X", "y"} <= value.keys():
        value = value["X"], value["y"]
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        held = f" of {', '.join(map(str, value))[:60]}" if isinstance(value, Mapping) else ""
        raise UserError(f"source={path}: holds a {type(value).__name__}{held}, not the pair (X, y); {_SAVE}")
    X, y = value
    if not isinstance(X, Tensor) or X.layout != torch.strided or X.is_quantized or X.dim() == 0 or not X[:1].numel():
        shape = f" of shape {tuple(X.shape)}, {X.layout}" if isinstance(X, Tensor) else ""
        raise UserError(f"source={path}: X is a {type(X).__name__}{shape}; save a dense tensor (N, ...) with values")
    if X.nbytes > X.untyped_storage().nbytes():
        raise UserError(f"source={path}: X repeats its values (torch.Tensor.expand); save X.clone()")
    labels = _as_labels(path, y)
    if len(labels) != len(X):
        raise UserError(f"source={path}: X has {len(X)} samples, y {len(labels)} labels; each sample needs one")
    return X.detach(), labels


def _as_labels(path: Path, y: Any) -> list[Any]:
    """Labels as JSON values, checked by the rules of docs/data.md."""
    if isinstance(y, (Tensor, np.ndarray)):
        y = y.tolist()
    if not isinstance(y, (list, tuple)):
        raise UserError(f"source={path}: y is a {type(y).__name__}; save a tensor, or a list of labels")
    labels = list(single({"": y})[""])
    try:
        read_labels({"train": labels}, {"train": [str(index) for index in range(len(labels))]})
    except UserError as error:
        raise UserError(f"source={path}: {error}") from None
    return labels
