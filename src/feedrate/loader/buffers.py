"""Memory for batches that is reused, as new memory costs a file descriptor, and a page fault for every 4 KB."""

from __future__ import annotations

import itertools
import math
import threading
import weakref
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_storage, reduce_tensor
from torch.nn import Parameter

from feedrate.loader.digest import is_dense

_ALIGNMENT = 64  # bytes; as torch's own allocator
_PAGE = 4096
_POOLED = 1 << 16  # bytes; smaller pieces come from the allocator without page faults
SPARE = 6  # buffers of a worker beyond its prefetched batches: for batches that the user still holds
_NUMBERS = itertools.count()


class BufferSlots(NamedTuple):
    """The part of SharedBuffers that is sent to workers: its number, and (workers, slots) uint8, 1 where busy."""

    number: int
    busy: Tensor


class SharedBuffers:
    """The shared buffers of the workers of one start, as the main process sees them.

    A worker allocates its buffers itself and sends each once. A buffer is busy until the last tensor on its memory is
    freed in the main process. A worker that finds none free sends the batch in fresh memory.
    """

    def __init__(self, workers: int, prefetch: int) -> None:
        busy = torch.zeros((workers, prefetch + SPARE), dtype=torch.uint8).share_memory_()
        self.slots = BufferSlots(next(_NUMBERS), busy)
        self._flags = busy.numpy()
        self.memory: dict[tuple[int, int], np.ndarray] = {}
        _BUFFERS[self.slots.number] = self

    def free(self, worker: int, slot: int) -> None:
        """Marks a buffer as free, once the last tensor on it is freed."""
        self._flags[worker, slot] = 0


_BUFFERS: weakref.WeakValueDictionary[int, SharedBuffers] = weakref.WeakValueDictionary()


class _Place(NamedTuple):
    """A tensor's place in a buffer, in bytes; sent instead of the tensor."""

    offset: int
    nbytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class BufferWriter:
    """Puts batches into the buffers of one worker: `begin`, `empty` any number of times, then `send`, or `drop`."""

    def __init__(self, buffers: BufferSlots, worker: int) -> None:
        self._number, self._worker = buffers.number, worker
        self._busy = buffers.busy[worker].numpy()
        self._slots = [torch.empty(0, dtype=torch.uint8)] * len(self._busy)
        self._sent: set[int] = set()
        self._slot: int | None = None
        self._used = 0
        self._size = 0  # of the largest batch so far
        ForkingPickler.register(torch.UntypedStorage, _noted)

    def begin(self) -> None:
        """Takes a buffer, if one is free."""
        self._slot, self._used = None, 0
        free = np.flatnonzero(self._busy == 0)
        if len(free):
            self._slot = int(free[0])
            self._busy[self._slot] = 1
            if len(self._slots[self._slot]) < self._size:
                self._enlarge()

    def _enlarge(self) -> None:
        assert self._slot is not None
        self._sent.discard(self._slot)
        self._slots[self._slot] = torch.empty(self._size, dtype=torch.uint8).share_memory_()

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory for a tensor: in the buffer if there is room."""
        nbytes = math.prod(shape) * dtype.itemsize
        start, self._used = self._used, self._used + -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        if self._slot is None or not nbytes or self._used > len(memory := self._slots[self._slot]):
            return torch.empty(shape, dtype=dtype)
        return memory[start : start + nbytes].view(dtype).view(shape)

    def finish(self, batch: Any) -> Any:
        """The batch with its tensors as places in the buffer, all else unchanged."""
        if self._slot is None:
            return batch
        places = _replaced(batch, self._place)
        if self._used > len(self._slots[self._slot]):  # larger than any before: all goes into a new, larger buffer
            self._slots[self._slot], self._used = torch.empty(0, dtype=torch.uint8), 0
            _replaced(batch, self._place)  # only counts: tensors outside the buffer have been counted twice so far
            self._size = -(-self._used // _PAGE) * _PAGE
            self._enlarge()
            self._used = 0
            places = _replaced(batch, self._place)
        if not self._used:
            self.drop()
            self._slot = None
        return places

    def send(self, places: Any) -> _Outgoing:
        """What to put into the queue. Raises errors of pickling, which would be lost in the thread of torch's queue."""
        _ADDRESSES.clear()
        pickled = bytes(ForkingPickler.dumps(places))
        if self._slot is None:
            return _Outgoing(self._number, self._worker, None, None, pickled)
        memory = self._slots[self._slot]
        known = self._slot in self._sent
        self._sent.add(self._slot)
        if any(0 <= address - memory.data_ptr() < len(memory) for address in _ADDRESSES):
            # a tensor that is sent as it is lies in the buffer; nothing would report when it is freed
            self._slots[self._slot] = torch.empty(0, dtype=torch.uint8)
        return _Outgoing(self._number, self._worker, self._slot, None if known else memory, pickled)

    def drop(self) -> None:
        """Gives the buffer back unused."""
        if self._slot is not None:
            self._busy[self._slot] = 0
            self._sent.discard(self._slot)  # its memory may have been meant to go with that batch

    def _place(self, tensor: Tensor) -> Any:
        assert self._slot is not None
        memory = self._slots[self._slot]
        plain = type(tensor) is Tensor and is_dense(tensor) and tensor.device.type == "cpu"
        if not plain or not tensor.numel() or tensor.requires_grad:
            return tensor
        if tensor.is_conj() or tensor.is_neg() or tensor.is_quantized or not tensor.is_contiguous():
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
    """Lets multiprocessing send every kind of tensor from this process, in a batch or in a dataset."""
    for kind in (Tensor, Parameter):
        ForkingPickler.register(kind, _reduced)


_ADDRESSES: list[int] = []  # of the storages in a worker's last batch that are sent as they are


def _noted(storage: torch.UntypedStorage) -> Any:
    _ADDRESSES.append(storage.data_ptr())
    return reduce_storage(storage)


def _reduced(tensor: Tensor) -> Any:
    """Like torch's own reduction, but keeps the conjugate and negative bits of a view, and a quantizer."""
    if tensor.layout == torch._mkldnn:  # type: ignore[attr-defined]
        return Tensor.to_mkldnn, (tensor.to_dense(),)
    if tensor.is_conj() or tensor.is_neg() or tensor.is_quantized:
        return tensor.__reduce_ex__(2)
    return reduce_tensor(tensor)


class _Outgoing:
    """A batch in flight; pickled later, in a thread of the worker."""

    def __init__(self, number: int, worker: int, slot: int | None, memory: Tensor | None, pickled: bytes) -> None:
        self._all = number, worker, slot, memory, pickled

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, self._all


def _arrived(number: int, worker: int, slot: int | None, memory: Tensor | None, pickled: bytes) -> SharedBatch | None:
    buffers = _BUFFERS.get(number)
    if buffers is None:  # the loader was closed
        return None
    if memory is not None and slot is not None:
        buffers.memory[worker, slot] = memory.numpy()
    return SharedBatch(buffers, worker, slot, pickled)


class SharedBatch:
    """A received batch, as a rule in a shared buffer, which is freed with it and its tensors."""

    def __init__(self, buffers: SharedBuffers, worker: int, slot: int | None, pickled: bytes) -> None:
        self._buffers, self._worker, self._slot, self._pickled = buffers, worker, slot, pickled

    def open(self) -> Any:
        """Resolves the shared buffer into tensors."""
        places = ForkingPickler.loads(self._pickled)
        if self._slot is None:
            return places
        memory = self._buffers.memory[self._worker, self._slot]
        return _replaced(places, lambda place: self._tensor(memory, place), _Place)

    def _tensor(self, memory: np.ndarray, place: _Place) -> Tensor:
        return _tensor_on(memory[place.offset : place.offset + place.nbytes], place.dtype, place.shape, self)

    def __del__(self) -> None:
        if self._slot is not None:
            self._buffers.free(self._worker, self._slot)


class _Keeper(weakref.ref[np.ndarray]):
    """Keeps an object alive until an array is freed; a tenth of the cost of weakref.finalize, in the timed loop."""

    __slots__ = ("held",)
    held: Any

    def __new__(cls, view: np.ndarray, held: Any) -> _Keeper:
        self = super().__new__(cls, view, _freed)
        self.held = held
        _KEEPERS[id(self)] = self
        return self


def _tensor_on(memory: np.ndarray, dtype: torch.dtype, shape: tuple[int, ...], held: Any) -> Tensor:
    """A tensor on that memory, (bytes,) uint8, which keeps `held` alive until the last tensor on it is freed."""
    known = _AS_NUMPY.get(dtype)
    if known is None:
        _Keeper(memory, held)
        return torch.from_numpy(memory).view(dtype).view(shape)
    # NumPy's views, as each view in torch releases the GIL, and another thread takes it
    view = memory.view(known).reshape(shape)
    _Keeper(view, held)
    return torch.from_numpy(view)


_AS_NUMPY = {torch.from_numpy(np.empty(0, dtype=code)).dtype: np.dtype(code) for code in "?bBhHiIlLefdFD"}
_KEEPERS: dict[int, _Keeper] = {}


def _freed(keeper: weakref.ref[np.ndarray], keepers: dict[int, _Keeper] = _KEEPERS) -> None:
    keepers.pop(id(keeper), None)


class BufferPool:
    """Memory within this process that is reused once the last tensor on it is freed; thread-safe."""

    def __init__(self) -> None:
        self._free: dict[int, list[np.ndarray]] = {}
        self._lock = threading.Lock()  # not for `_Spare`, which may be freed anywhere, also while it is held

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory for a tensor, from the pool where it has some of that size."""
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes < _POOLED:
            return torch.empty(shape, dtype=dtype)
        with self._lock:
            free = self._free.get(nbytes)
            if free is None:
                if len(self._free) >= SPARE:  # every batch has another size: keep the latest sizes
                    self._free.pop(next(iter(self._free)))
                free = self._free[nbytes] = []
            memory = free.pop() if free else None
        if memory is None:
            memory = np.empty(nbytes, dtype=np.uint8)
        return _tensor_on(memory[:], dtype, shape, _Spare(free, memory))

    def __reduce__(self) -> tuple[Any, ...]:
        return BufferPool, ()


class _Spare:
    """Memory that returns to a pool when this is freed."""

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
        named = hasattr(value, "_fields") and type(value).__bases__ == (tuple,)  # others may refuse other values
        if type(value) is not tuple and not named:
            return value
        parts = [_replaced(item, swap, kind) for item in value]
        return type(value)(*parts) if named else tuple(parts)
    if type(value) is list:
        return [_replaced(item, swap, kind) for item in value]
    if type(value) is dict:
        return {key: _replaced(item, swap, kind) for key, item in value.items()}
    return value
