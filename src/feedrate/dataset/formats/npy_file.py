"""Loads one file that np.save wrote, without running code from it, and explains a file that cannot be loaded."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from feedrate.dataset.formats.pt_file import TAKE_OUT, os_fault
from feedrate.errors import SampleError

_MAGIC = b"\x93NUMPY"
_NO_NPY = "is not a file that np.save wrote; save the array alone with np.save(path, X)"


def load_array(path: str, ID: str) -> Tensor:
    """The array in a file that np.save wrote, as a tensor in this machine's byte order.

    Raises:
        SampleError: the file is missing, empty, damaged, needs code to load, or has a dtype unknown to torch.
    """
    fault = ""
    try:
        with warnings.catch_warnings(), Path(path).open("rb") as file:
            warnings.simplefilter("ignore")  # NumPy's, about headers that Python 2 wrote
            magic = file.read(len(_MAGIC))
            if magic != _MAGIC:  # np.load would take archives and pickles too
                fault = _NO_NPY if magic else f"is an empty file; restore it, {TAKE_OUT}"
                raise ValueError
            file.seek(0)
            array = np.load(file, allow_pickle=False)
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    except Exception as error:
        raise SampleError(f"sample {ID!r} ({path}): {fault or _fault(error)}", ID=ID, path=path) from None


def _fault(error: Exception) -> str:
    text = str(error)
    if "allow_pickle" in text:
        return "holds Python objects, which need code to load; save an array of numbers"
    if isinstance(error, TypeError) and "convert np.ndarray" in text:
        return "has a dtype that torch does not know; save numbers, such as X.astype('float32')"
    return f"{os_fault(error) or 'is truncated or damaged'}; restore it, {TAKE_OUT}"
