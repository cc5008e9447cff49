"""A digest of the order of samples: SHA-256 over IDs in chained blocks, so that it can be stored in a checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch

from feedrate.dataset.ids import encode
from feedrate.errors import UserError
from feedrate.loader.order import BLOCK, Order

_START = hashlib.sha256(b"feedrate order digest 1").digest()


class OrderDigest:
    """The chain up to a position of the current epoch, earlier epochs included."""

    def __init__(self, list_IDs: Sequence[str] | None) -> None:
        self.list_IDs = list_IDs  # by index; None where the index is the ID
        self._order: Order | None = None
        self._first = 0  # position of the first block whose chain is known
        self._chains = [_START]  # before that block and each one after it

    def begin(self, order: Order, delivered: int) -> None:
        """Begins an epoch, and ends the one before at the position `delivered`."""
        if self._order is not None:
            self._first, self._chains = 0, [self._at(delivered)]
        self._order = order

    def at(self, position: int) -> str:
        """The digest after `position` samples of the current epoch, 64 hexadecimal digits."""
        return self._at(position).hex()

    def state(self, position: int) -> dict[str, Any]:
        """What `load` takes: JSON-able, of constant size."""
        start, chain = self._block(position)
        return {"chain": chain.hex(), "block_start": start}

    def load(self, state: dict[str, Any], order: Order) -> None:
        """Continues from a `state` in an epoch with this order."""
        self._first, self._chains = int(state["block_start"]), [bytes.fromhex(state["chain"])]
        self._order = order

    def _at(self, position: int) -> bytes:
        start, chain = self._block(position)
        return self._hash(chain, start, position) if position > start else chain

    def _block(self, position: int) -> tuple[int, bytes]:
        """Start of the block of `position`, and the chain up to there."""
        assert position >= self._first, (position, self._first)
        number = (position - self._first) // BLOCK
        while len(self._chains) <= number:
            start = self._first + BLOCK * (len(self._chains) - 1)
            self._chains.append(self._hash(self._chains[-1], start, start + BLOCK))
        return self._first + BLOCK * number, self._chains[number]

    def _hash(self, chain: bytes, start: int, stop: int) -> bytes:
        assert self._order is not None
        return hashlib.sha256(chain + encode(self.list_IDs, self._order.indices(start, stop))).digest()


def content_hash(chain: bytes, batch: Any) -> bytes:
    """The chain extended by a batch: names, dtypes, shapes and bytes of its tensors."""
    digest = hashlib.sha256(chain)
    for name, value in leaves(batch):
        if isinstance(value, torch.Tensor) and is_dense(value) and not value.is_quantized:
            digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
            plain = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
            digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
            digest.update(f"{name} {value.dtype} {value.shape};".encode() + value.tobytes())
        elif value is None or isinstance(value, (str, bytes, bool, int, float, complex, np.generic)):
            digest.update(f"{name} {value!r};".encode())
        else:
            raise UserError(
                f"loader.content_digest=true: a batch holds {type(value).__name__} at {name or 'its top'}, which "
                "cannot be hashed; return dense tensors, arrays, numbers and texts, or set loader.content_digest=false"
            )
    return digest.digest()


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(place, value) of everything in a batch or sample that is no container; a place is like `.0.image`."""
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from leaves(value[key], f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from leaves(item, f"{name}.{index}")
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from leaves(getattr(value, field.name), f"{name}.{field.name}")
    else:
        yield name, value


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether a tensor is strided: neither sparse nor nested."""
    return tensor.layout == torch.strided and not tensor.is_nested


def nbytes(batch: Any) -> int:
    """Bytes of a batch's dense tensors and arrays."""
    if type(batch) is tuple and len(batch) == 2 and type(batch[0]) is type(batch[1]) is torch.Tensor:  # fast path
        X, y = batch
        if is_dense(X) and is_dense(y):
            return int(X.nbytes + y.nbytes)
    return sum(
        value.nbytes
        for _, value in leaves(batch)
        if isinstance(value, np.ndarray) or (isinstance(value, torch.Tensor) and is_dense(value))
    )
