"""IDs and labels of millions of samples in a few tensors, whose memory workers share.

A Python list of strings would be copied page by page into every forked worker, as reading changes reference counts,
and would be pickled for a spawned one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from multiprocessing.context import get_spawning_popen
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from feedrate.errors import UserError


class IDs(Sequence[str]):
    """A read-only sequence of strings: their UTF-8 bytes end to end, and where each one ends (8 bytes).

    Pickled for a process that is being spawned, both tensors move into shared memory once and are mapped by every
    worker; any other pickle holds a copy.

    Raises:
        UserError: a value is no text, or no valid Unicode.
    """

    def __init__(self, values: Iterable[str]) -> None:
        encoded = [_utf8(value) for value in values]
        text = b"".join(encoded)
        # frombuffer refuses an empty buffer
        self.text: Tensor = (
            torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else torch.zeros(0, dtype=torch.uint8)
        )
        lengths = np.fromiter((len(value) for value in encoded), dtype=np.int64, count=len(encoded))
        self.ends: Tensor = torch.from_numpy(np.cumsum(lengths))
        self._open()

    @classmethod
    def of(cls, text: np.ndarray, ends: np.ndarray) -> IDs:
        """From UTF-8 bytes end to end (uint8), and where each ID ends (int64)."""
        found = cls(())
        found.__setstate__({"text": np.array(text), "ends": np.array(ends)})
        return found

    def _open(self) -> None:
        self._text, self._ends = self.text.numpy(), self.ends.numpy()
        self._view = memoryview(self._text.data)
        self._rows: np.ndarray | None = None  # (N, length) where all lengths are equal, else (0,)

    def __getstate__(self) -> dict[str, Any]:
        # torch pickles a tensor by moving it to shared memory, away from under the NumPy views; so copies are moved,
        # and used from now on. A queue that is never read would leak shared memory: it gets arrays, which are copied.
        if get_spawning_popen() is None:
            return {"text": self._text, "ends": self._ends}
        if not self.text.is_shared():
            self.text, self.ends = self.text.clone().share_memory_(), self.ends.clone().share_memory_()
            self._open()
        return {"text": self.text, "ends": self.ends}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.text, self.ends = (torch.as_tensor(state[name]) for name in ("text", "ends"))
        self._open()

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        size = len(self._ends)
        if not -size <= index < size:
            raise IndexError(f"index {index} of {size} IDs")
        if index < 0:
            index += size
        start = int(self._ends[index - 1]) if index else 0
        return str(self._view[start : int(self._ends[index])], "utf-8")

    def __iter__(self) -> Iterator[str]:
        start = 0
        for end in self._ends.tolist():
            yield str(self._view[start:end], "utf-8")
            start = end

    def at(self, indices: np.ndarray) -> list[str]:
        """The IDs at `indices`, (n,) int64 and not negative; faster than one by one."""
        starts, ends = self._spans(indices)
        view = self._view
        return [str(view[start:end], "utf-8") for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]

    def _spans(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the IDs at `indices` begin and end."""
        return np.where(indices > 0, self._ends[indices - 1], 0), self._ends[indices]

    def characters(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """UTF-8 of the IDs at `indices` end to end, and the length of each in bytes."""
        starts, ends = self._spans(indices)
        lengths = ends - starts
        within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return self._text[np.repeat(starts, lengths) + within], lengths

    def table(self, indices: np.ndarray) -> np.ndarray | None:
        """UTF-8 of the IDs at `indices`, (n, length) uint8; None where lengths differ, or one holds a zero byte."""
        if self._rows is None:
            length = int(self._ends[0]) if len(self) else 0
            uniform = length and np.array_equal(self._ends, np.arange(1, len(self) + 1) * length) and self._text.all()
            self._rows = self._text.reshape(-1, length) if uniform else self._text[:0]
        if self._rows.ndim == 2:
            found: np.ndarray = self._rows[indices]
            return found
        starts, ends = self._spans(indices)
        lengths = ends - starts
        if not len(indices) or (lengths != lengths[0]).any():
            return None
        found = self._text[starts[:, None] + np.arange(lengths[0])]
        return found if found.all() else None


def _utf8(value: str) -> bytes:
    try:
        return value.encode()
    except (AttributeError, UnicodeEncodeError):
        kind = type(value).__name__
        raise UserError(f"ID {value!r} ({kind}) is no text in valid Unicode; write {str(value)!r}") from None


def encode(list_IDs: Sequence[str] | None, indices: np.ndarray) -> bytes:
    """The IDs at `indices` ((n,) int64), each as its length (uint32, little-endian) and its UTF-8 bytes.

    None stands for the indices in decimal.
    """
    if isinstance(list_IDs, IDs):
        return _framed(*list_IDs.characters(indices))
    if list_IDs is None:
        return _framed(*_decimal(indices))
    names = [str(list_IDs[index]).encode() for index in indices.tolist()]
    return _framed(
        np.frombuffer(b"".join(names), dtype=np.uint8), np.array([len(name) for name in names], dtype=np.int64)
    )


def _decimal(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Digits of non-negative numbers (n,) end to end as uint8, and how many each has."""
    powers = 10 ** np.arange(19)
    lengths = np.maximum(1, np.searchsorted(powers, numbers, side="right"))
    width = int(lengths.max()) if len(lengths) else 0
    digits = (numbers[:, None] // powers[:width][::-1] % 10 + ord("0")).astype(np.uint8)
    return digits[np.arange(width) >= width - lengths[:, None]], lengths


def _framed(text: np.ndarray, lengths: np.ndarray) -> bytes:
    """Texts end to end, uint8, each after its length in bytes (uint32, little-endian)."""
    heads = lengths.astype("<u4").view(np.uint8).reshape(-1, 4)
    if len(lengths) and (lengths == lengths[0]).all():
        return np.hstack([heads, text.reshape(len(lengths), -1)]).tobytes()
    out = np.empty(len(text) + heads.size, dtype=np.uint8)
    is_text = np.ones(len(out), dtype=bool)
    places = (np.cumsum(lengths + 4) - lengths - 4)[:, None] + np.arange(4)
    is_text[places], out[places] = False, heads
    out[is_text] = text
    return out.tobytes()


class Labels(Mapping[str, Any]):
    """Labels of one partition: a mapping from ID, held as a tensor aligned with the IDs.

    Attributes:
        tensor: (N,) int64 class indices, (N,) float32 numbers, or (N, K) float32 vectors.
        classes: the original label of each class index; None where the tensor holds the labels themselves.
        known: False where the tensor holds placeholders for samples without labels.
    """

    def __init__(self, list_IDs: IDs, tensor: Tensor, classes: Sequence[Any] | None = None, known: bool = True) -> None:
        assert len(list_IDs) == len(tensor)
        self.list_IDs, self.tensor, self.classes, self.known = list_IDs, tensor, classes, known
        self._sorted: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.list_IDs)

    def __iter__(self) -> Iterator[str]:
        return iter(self.list_IDs)

    def __getitem__(self, ID: str) -> Any:
        """A number for classes and scalars, a (K,) tensor for vectors."""
        value = self.tensor[self.position(ID)]
        return value if value.dim() else value.item()

    def stated(self, ID: str) -> Any:
        """The original label of an ID: a text, a number, true or false, or a list of numbers."""
        value: Any = self.tensor[self.position(ID)].tolist()
        return value if self.classes is None else self.classes[value]

    @property
    def indexed(self) -> bool:
        """Whether the look-up by ID is built."""
        return self._sorted is not None

    def index(self) -> None:
        """Builds the look-up by ID, 16 bytes for each, so that workers forked later share it."""
        if self._sorted is None:
            hashes = np.fromiter((_hash(ID) for ID in self.list_IDs), dtype=np.int64, count=len(self.list_IDs))
            order = np.argsort(hashes)
            # tensors, which are shared with a spawned worker
            self._sorted = torch.from_numpy(hashes[order]), torch.from_numpy(order)

    def position(self, ID: str) -> int:
        """Index of an ID.

        Raises:
            KeyError: it has no label.
        """
        self.index()
        assert self._sorted is not None
        hashes, order = self._sorted
        try:
            key = _hash(ID)
        except (AttributeError, UnicodeEncodeError):  # no text, or no valid Unicode
            raise KeyError(ID) from None
        at = int(torch.searchsorted(hashes, key))
        while at < len(hashes) and hashes[at] == key:  # different IDs may have equal hashes
            if self.list_IDs[int(order[at])] == ID:
                return int(order[at])
            at += 1
        raise KeyError(ID)


def _hash(ID: str) -> int:
    """A 64-bit hash that, unlike Python's own, is the same in every process."""
    return int.from_bytes(hashlib.blake2b(ID.encode(), digest_size=8).digest(), "little", signed=True)
