"""What a dataset costs each worker: bytes that are sent to it, and Python objects that it comes to copy.

An estimate before any worker starts; what is made of it is preflight.py's affair.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
from torch import Tensor

from feedrate.dataset.ids import IDs

LOOKED_AT = 64  # elements of a collection, after which its other ones are thought to be alike
DEEP = 8  # collections and objects within each other
_PAGE = 4096


@dataclass(frozen=True)
class Parcel:
    """A dataset, as it reaches a worker; without figures, one that costs it nothing.

    Attributes:
        copied: bytes of the pickle that is made for each worker, arrays included.
        shared: bytes of tensors that move to shared memory once, for all workers.
        objects: bytes of Python objects that each worker may come to hold besides: what is unpickled is larger than its
            pickle, and a forked worker copies, page by page, what it reads, since reading changes reference counts.
    """

    copied: int = 0
    shared: int = 0
    objects: int = 0


NOTHING = Parcel()


def sent(dataset: Any, seen: set[int]) -> Parcel:
    """What is sent to workers that do not inherit it; an empty parcel where it cannot be, which is told later.

    Args:
        seen: tensors that other datasets share, and that were counted there; those of this one are added.
    """
    scales = _Scales(seen)
    try:
        scales.dump(dataset)
    except Exception:
        return NOTHING
    more = max(0, inherited(dataset).objects - scales.pickled)
    return Parcel(scales.pickled + scales.arrays, scales.shared, more)


def inherited(dataset: Any) -> Parcel:
    """What forked workers come to copy of it, from a look at some of its elements."""
    return Parcel(objects=round(_size(dataset, DEEP, set())))


class _Nowhere:
    """A file that counts."""

    def __init__(self) -> None:
        self.written = 0

    def write(self, data: Any) -> None:
        self.written += len(data) if isinstance(data, bytes) else memoryview(data).nbytes


class _Scales(ForkingPickler):
    """Pickles as it is done for a worker, and keeps nothing; tensors and arrays are only counted."""

    def __init__(self, seen: set[int]) -> None:
        self._file = _Nowhere()
        super().__init__(self._file, pickle.HIGHEST_PROTOCOL)
        self.arrays = self.shared = 0
        self._seen = seen

    @property
    def pickled(self) -> int:
        return self._file.written

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Tensor):
            self._share(obj)
            return int, ()
        if isinstance(obj, IDs):
            self._share(obj.text)
            self._share(obj.ends)
            return int, ()
        if isinstance(obj, np.ndarray) and not obj.dtype.hasobject:
            self.arrays += obj.nbytes
            return int, ()
        return NotImplemented

    def _share(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if not tensor.is_shared() and storage.data_ptr() not in self._seen:
            self.shared += storage.nbytes()
        self._seen.add(storage.data_ptr())


def _size(value: Any, deep: int, seen: set[int]) -> float:
    """Bytes of the Python objects that hang on a value; tensors, arrays and what is computed hold none to speak of."""
    if id(value) in seen or deep < 0 or isinstance(value, (Tensor, np.ndarray, IDs)) or callable(value):
        return 0.0
    seen.add(id(value))  # one that stands in many places is copied once
    # the reference count lies in an object's first page; a long text's other ones stay shared, and so does a list's row
    # of references
    own = float(min(sys.getsizeof(value, 0), _PAGE))
    if isinstance(value, dict):
        looked = [one for pair in islice(value.items(), LOOKED_AT) for one in pair]
        return own + _sizes(looked, 2 * len(value), deep, seen)
    if isinstance(value, (set, frozenset)):
        return own + _sizes(list(islice(value, LOOKED_AT)), len(value), deep, seen)
    if isinstance(value, (list, tuple)):
        return own + _sizes(value[:: -(-len(value) // LOOKED_AT) or 1], len(value), deep, seen)
    held = getattr(value, "__dict__", None)
    return own + (sum(_size(part, deep - 1, seen) for part in held.values()) if isinstance(held, dict) else 0.0)


def _sizes(looked: Sequence[Any], count: int, deep: int, seen: set[int]) -> float:
    """Of `count` elements, from those that were looked at."""
    found = sum(_size(one, deep - 1, seen) for one in looked)
    return found * count / len(looked) if looked else 0.0
