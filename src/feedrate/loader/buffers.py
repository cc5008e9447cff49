"""How a batch crosses from a worker: through shared memory that is used again, while only its place is sent.

Memory that is new for each batch costs a file descriptor and a page fault for each 4 KB. What a batch is made of, and
when, is decided elsewhere.
"""

from __future__ import annotations

import itertools
import math
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor
from torch.nn import Parameter

_ALIGNMENT = 64  # bytes; as torch's own allocator
_PAGE = 4096
_POOLED = 1 << 16  # bytes; smaller pieces come from the allocator without page faults
SPARE = 6  # slots of a worker beyond those that wait to be taken: batches that the user still holds
_NUMBERS = itertools.count()


def usual_slots(workers: int, waiting: int) -> int:
    """Slots that each worker comes to fill where its user keeps no batch.

    Three batches are neither waited for nor free: the one in use, the one that takes its place, and the one that was
    received meanwhile. Workers take turns, so at times they are all those of one or two of them.

    Args:
        waiting: batches that a worker makes ahead.
    """
    return waiting + -(-3 // workers)


class Ring:
    """The slots of the workers of one start, as the main process sees them.

    A worker makes its slots itself, as it learns how large batches are, and sends each once. A slot is lent to whoever
    holds a tensor in it: it is free again when the last tensor on its memory is gone, and a worker that finds none
    free sends fresh memory. On the way it is busy: set by the worker that fills it, cleared here.

    Args:
        workers: number of workers.
        waiting: batches that a worker makes ahead.
    """

    def __init__(self, workers: int, waiting: int) -> None:
        self.number, self.usual = next(_NUMBERS), usual_slots(workers, waiting)
        self.busy = torch.zeros((workers, waiting + SPARE), dtype=torch.uint8).share_memory_()
        self._flags = self.busy.numpy()
        self.memory: dict[tuple[int, int], np.ndarray] = {}
        _RINGS[self.number] = self

    def free(self, worker: int, slot: int) -> None:
        """The slot may be filled again."""
        self._flags[worker, slot] = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return _Sent, (self.number, self.usual, self.busy)


class _Sent:
    """A ring as a worker that was spawned sees it."""

    def __init__(self, number: int, usual: int, busy: Tensor) -> None:
        self.number, self.usual, self.busy = number, usual, busy


_RINGS: weakref.WeakValueDictionary[int, Ring] = weakref.WeakValueDictionary()


class _Place(NamedTuple):
    """Stands for a tensor in what is sent: where it lies in the slot, in bytes."""

    offset: int
    nbytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]


# ---------------------------------------------------------------------------------------------------------
# in a worker
# ---------------------------------------------------------------------------------------------------------


class Writer:
    """Puts batches into the slots of one worker.

    Use: `begin`, then `empty` as often as wanted, then `finish` and `leave`, or `drop`.
    """

    def __init__(self, ring: Ring | _Sent, worker: int) -> None:
        self._number, self._worker, self._usual = ring.number, worker, ring.usual
        self._busy = ring.busy[worker].numpy()
        self._slots = [torch.empty(0, dtype=torch.uint8)] * len(self._busy)
        self._sent: set[int] = set()
        self._begun = 0  # of the usual slots, how many have been used
        self._slot: int | None = None
        self._used = 0
        self._wanted = 0

    def begin(self) -> None:
        """Takes a slot, if one is free."""
        self._slot, self._used = None, 0
        free = np.flatnonzero(self._busy == 0)
        if len(free):
            self._slot = int(free[0])
            if self._begun < self._usual and not self._busy[self._begun]:  # all of them soon, and no more memory later
                self._slot = self._begun
                self._begun += 1
            self._busy[self._slot] = 1
            if len(self._slots[self._slot]) < self._wanted:
                self._enlarge()

    def _enlarge(self) -> None:
        assert self._slot is not None
        self._sent.discard(self._slot)
        self._slots[self._slot] = torch.empty(self._wanted, dtype=torch.uint8).share_memory_()

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory for a tensor: in the slot as far as that has room."""
        nbytes = math.prod(shape) * dtype.itemsize
        start, self._used = self._used, self._used + -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        if self._slot is None or not nbytes or self._used > len(memory := self._slots[self._slot]):
            return torch.empty(shape, dtype=dtype)
        return memory[start : start + nbytes].view(dtype).view(shape)

    def finish(self, batch: Any) -> Any:
        """What is to be sent instead of the batch: places in the slot for its tensors, and all else as it is."""
        if self._slot is None:
            return batch
        places = _replaced(batch, self._place)
        if self._used > len(self._slots[self._slot]):  # larger than any before: all goes into a new, larger slot
            self._slots[self._slot], self._used = torch.empty(0, dtype=torch.uint8), 0
            _replaced(batch, self._place)  # only counts: what was not in the slot has been counted twice so far
            self._wanted = -(-self._used // _PAGE) * _PAGE
            self._enlarge()
            self._used = 0
            places = _replaced(batch, self._place)
        if not self._used:
            self.drop()
            return batch
        known = self._slot in self._sent
        self._sent.add(self._slot)
        return _Outgoing(self._number, self._worker, self._slot, None if known else self._slots[self._slot], places)

    def leave(self, tensors: Iterable[Tensor | torch.UntypedStorage]) -> None:
        """Fills the slot's memory no more if one of those that are sent as they are lies in it, as in a container that
        `finish` does not look into: nobody would tell when that one is gone.
        """
        if self._slot is None:
            return
        memory = self._slots[self._slot]
        if any(0 <= one.data_ptr() - memory.data_ptr() < len(memory) for one in tensors if one is not memory):
            self._slots[self._slot] = torch.empty(0, dtype=torch.uint8)

    def drop(self) -> None:
        """Gives the slot back: no batch came of it."""
        if self._slot is not None:
            self._busy[self._slot] = 0
            self._sent.discard(self._slot)  # its memory may have been meant to go with that batch

    def _place(self, tensor: Tensor) -> Any:
        assert self._slot is not None
        memory = self._slots[self._slot]
        plain = type(tensor) is Tensor and tensor.layout == torch.strided and tensor.device.type == "cpu"
        if (
            not plain
            or tensor.is_nested
            or not tensor.numel()
            or tensor.requires_grad
            or tensor.is_conj()
            or tensor.is_neg()
        ):
            return tensor
        if tensor.is_quantized or not tensor.is_contiguous():
            return tensor  # torch's own way keeps strides
        offset = tensor.data_ptr() - memory.data_ptr()
        if not 0 <= offset < len(memory):
            home = self.empty(tuple(tensor.shape), tensor.dtype)
            offset = home.data_ptr() - memory.data_ptr()
            if not 0 <= offset < len(memory):
                return tensor
            home.copy_(tensor)
        return _Place(offset, tensor.nbytes, tensor.dtype, tuple(tensor.shape))


def send_all_tensors() -> None:
    """Makes multiprocessing send every kind of tensor from this process, wherever it stands in a batch or a dataset."""
    for kind in (Tensor, Parameter):
        ForkingPickler.register(kind, _reduced)


def _reduced(tensor: Tensor) -> Any:
    """As torch does it, but for what that loses: the conjugate and negative bits of a view, and a quantizer."""
    if tensor.layout == torch._mkldnn:  # type: ignore[attr-defined]
        return Tensor.to_mkldnn, (tensor.to_dense(),)
    if tensor.is_conj() or tensor.is_neg() or tensor.is_quantized:
        return tensor.__reduce_ex__(2)
    return reduce_tensor(tensor)


class _Outgoing:
    """A batch on its way; pickled in a thread of the worker, some time later."""

    def __init__(self, number: int, worker: int, slot: int, memory: Tensor | None, places: Any) -> None:
        self._all = number, worker, slot, memory, places

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, self._all


# ---------------------------------------------------------------------------------------------------------
# in the main process
# ---------------------------------------------------------------------------------------------------------


def _arrived(number: int, worker: int, slot: int, memory: Tensor | None, places: Any) -> Lent | None:
    ring = _RINGS.get(number)
    if ring is None:  # the loader is gone
        return None
    if memory is not None:
        ring.memory[worker, slot] = memory.numpy()
    return Lent(ring, worker, slot, places)


class Lent:
    """A batch that has arrived in a slot. One that nobody opens gives its slot back."""

    def __init__(self, ring: Ring, worker: int, slot: int, places: Any) -> None:
        self._ring, self._worker, self._slot, self._places = ring, worker, slot, places

    def open(self) -> Any:
        """The batch, whose tensors lie in the slot until the last of them is gone."""
        memory = self._ring.memory[self._worker, self._slot]
        return _replaced(self._places, lambda place: self._lend(memory, place), _Place)

    def _lend(self, memory: np.ndarray, place: _Place) -> Tensor:
        # a tensor keeps its array; the last one of the batch that goes frees the slot
        return _lent(memory[place.offset : place.offset + place.nbytes], place.dtype, place.shape, self)

    def __del__(self) -> None:
        self._ring.free(self._worker, self._slot)


class _Loan(weakref.ref[np.ndarray]):
    """Keeps an object until an array is gone; a tenth of the cost of weakref.finalize, as it lies in the timed loop."""

    __slots__ = ("held",)
    held: Any

    def __new__(cls, view: np.ndarray, held: Any) -> _Loan:
        self = super().__new__(cls, view, _ended)
        self.held = held
        _LOANS[id(self)] = self
        return self


def _lent(memory: np.ndarray, dtype: torch.dtype, shape: tuple[int, ...], held: Any) -> Tensor:
    """A tensor on that memory, (bytes,) uint8, which keeps an object until the last tensor on it is gone."""
    known = _AS_NUMPY.get(dtype)
    if known is None:
        _Loan(memory, held)
        return torch.from_numpy(memory).view(dtype).view(shape)
    # NumPy's views, as torch lets go of the interpreter for each of its own, and another thread takes it meanwhile
    view = memory.view(known).reshape(shape)
    _Loan(view, held)
    return torch.from_numpy(view)


_AS_NUMPY = {torch.from_numpy(np.empty(0, dtype=code)).dtype: np.dtype(code) for code in "?bBhHiIlLefdFD"}
_LOANS: dict[int, _Loan] = {}


def _ended(loan: weakref.ref[np.ndarray], loans: dict[int, _Loan] = _LOANS) -> None:
    loans.pop(id(loan), None)


class Pool:
    """Memory of this process that is used again, lent as slots are, for batches that do not cross.

    Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[np.ndarray]] = {}
        self._lock = threading.Lock()  # not for `_Spare`, which may end anywhere, also while it is held

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory for a tensor; it is used again when the last tensor on it is gone."""
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes < _POOLED:
            return torch.empty(shape, dtype=dtype)
        with self._lock:
            free = self._free.get(nbytes)
            if free is None:
                if len(self._free) >= SPARE:  # batches of ever new sizes: keep what the latest need
                    self._free.pop(next(iter(self._free)))
                free = self._free[nbytes] = []
            memory = free.pop() if free else None
        if memory is None:
            memory = np.empty(nbytes, dtype=np.uint8)
        return _lent(memory[:], dtype, shape, _Spare(free, memory))

    def __reduce__(self) -> tuple[Any, ...]:
        return Pool, ()


class _Spare:
    """Memory that comes back to a pool when nobody holds this any more."""

    __slots__ = ("_free", "_memory")

    def __init__(self, free: list[np.ndarray], memory: np.ndarray) -> None:
        self._free, self._memory = free, memory

    def __del__(self) -> None:
        if len(self._free) < SPARE:
            self._free.append(self._memory)


def _replaced(value: Any, swap: Callable[[Any], Any], kind: type = Tensor) -> Any:
    """`value` with each object of a kind in its tuples, lists and dictionaries swapped."""
    if isinstance(value, kind):
        return swap(value)
    if isinstance(value, tuple):
        named = hasattr(value, "_fields") and type(value).__bases__ == (tuple,)  # others may refuse what is no tensor
        if type(value) is not tuple and not named:
            return value
        parts = [_replaced(item, swap, kind) for item in value]
        return type(value)(*parts) if named else tuple(parts)
    if type(value) is list:
        return [_replaced(item, swap, kind) for item in value]
    if type(value) is dict:
        return {key: _replaced(item, swap, kind) for key, item in value.items()}
    if isinstance(value, Mapping):
        return value
    return value
