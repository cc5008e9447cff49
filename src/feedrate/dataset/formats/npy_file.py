"""Loads one file that np.save wrote, without running code from it, and explains a file that cannot be loaded."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from feedrate.dataset.formats.pt_file import os_fault
from feedrate.errors import SampleError

_NO_NPY = "is truncated, damaged, or not an array of numbers that np.save wrote"


def load_array(path: str, ID: str) -> Tensor:
    """The array in a file that np.save wrote, as a tensor in this machine's byte order.

    Raises:
        SampleError: the file is missing, empty, damaged, needs code to load, or has a dtype unknown to torch.
    """
    try:
        with warnings.catch_warnings(), Path(path).open("rb") as file:
            warnings.simplefilter("ignore")  # NumPy's, about headers that Python 2 wrote
            if file.read(6) != b"\x93NUMPY":  # np.load would take archives and pickles too
                raise ValueError
            file.seek(0)
            array = np.load(file, allow_pickle=False)
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    except Exception as error:
        fault = os_fault(error) or _NO_NPY
        remedy = "restore it, save the array alone with np.save(path, X), or take the ID out of the partition"
        raise SampleError(f"sample {ID!r} ({path}): {fault}; {remedy}", ID=ID, path=path) from None
