"""Reads one file that np.save wrote, and says what is wrong with one that cannot be read.

Never runs code from a file. Which files there are is the dataset's affair.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from feedrate.errors import SampleError

_MAGIC = b"\x93NUMPY"
_OUT = "or take the ID out of the partition"


def load_array(path: str, ID: str) -> Tensor:
    """The array in a file that np.save wrote, as a tensor in this machine's byte order.

    Raises:
        SampleError: the file is missing, empty, damaged, needs code to load, or is of a dtype that torch has not.
    """
    try:
        with warnings.catch_warnings(), Path(path).open("rb") as file:
            warnings.simplefilter("ignore")  # of NumPy, about headers that Python 2 wrote
            if file.read(len(_MAGIC)) != _MAGIC:  # np.load would take archives and pickles too
                size = Path(path).stat().st_size
                fault = "is not a file that np.save wrote; save the array alone with np.save(path, X)"
                raise _Unfit("is an empty file; restore it, " + _OUT if size == 0 else fault)
            file.seek(0)
            array = np.load(file, allow_pickle=False)
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    except Exception as error:
        raise SampleError(f"sample {ID!r} ({path}): {_reason(error)}", ID=ID, path=path) from None


class _Unfit(Exception):
    pass


def _reason(error: Exception) -> str:
    text = str(error)
    if isinstance(error, _Unfit):
        return text
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return f"no such file; restore it, {_OUT}"
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read ({error.strerror or error}); mend that, {_OUT}"
    if isinstance(error, MemoryError):
        return f"does not fit into memory; save a smaller array, {_OUT}"
    if "allow_pickle" in text:
        return "holds Python objects, which need code to load; save an array of numbers"
    if isinstance(error, TypeError) and "convert np.ndarray" in text:
        return "is of a dtype that torch has not; save numbers, such as X.astype('float32')"
    return f"is truncated or damaged; restore it, {_OUT}"
