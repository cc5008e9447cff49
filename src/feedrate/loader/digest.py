"""A fingerprint of the order in which samples were delivered, equal for any workers, engine or restart.

SHA-256 over IDs in the global order, in blocks whose digests are chained: a running hash cannot be stored
in a checkpoint, a chain can, and after a restart only the partial block is hashed again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from feedrate.dataset.ids import encode
from feedrate.loader.order import BLOCK, Order

_START = hashlib.sha256(b"feedrate order digest 1").digest()


class OrderDigest:
    """The chain up to a position of the present epoch; earlier epochs are part of the chain."""

    def __init__(self, list_IDs: Sequence[str] | None) -> None:
        self._list_IDs = list_IDs
        self._order: Order | None = None
        self._chain, self._block_start = _START, 0

    def begin(self, order: Order, delivered: int) -> None:
        """A new epoch: closes the one before at the position `delivered`."""
        if self._order is not None:
            self._chain, self._block_start = self._at(delivered), 0
        self._order = order

    def at(self, position: int) -> str:
        """The digest after `position` samples of the present epoch, 64 hexadecimal digits."""
        return self._at(position).hex()

    def state(self, position: int) -> dict[str, Any]:
        """What `load` needs: JSON-able, of constant size."""
        self._at(position)
        return {"chain": self._chain.hex(), "block_start": self._block_start}

    def load(self, state: dict[str, Any], order: Order) -> None:
        self._chain, self._block_start = bytes.fromhex(state["chain"]), int(state["block_start"])
        self._order = order

    def _at(self, position: int) -> bytes:
        if self._order is None:
            return self._chain
        while self._block_start + BLOCK <= position:  # only whole blocks move the chain on
            self._chain = self._hash(self._block_start, self._block_start + BLOCK)
            self._block_start += BLOCK
        return self._hash(self._block_start, position) if position > self._block_start else self._chain

    def _hash(self, start: int, stop: int) -> bytes:
        assert self._order is not None
        return hashlib.sha256(self._chain + encode(self._list_IDs, self._order.indices(start, stop))).digest()


def content_hash(chain: bytes, batch: Any) -> bytes:
    """The chain of batch contents with one batch more: names, dtypes, shapes and bytes of its tensors."""
    digest = hashlib.sha256(chain)
    for name, value in _leaves("", batch):
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(value, np.ndarray):
            digest.update(f"{name} {value.dtype} {value.shape};".encode() + value.tobytes())
        else:
            digest.update(f"{name} {value!r};".encode())
    return digest.digest()


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from _leaves(f"{name}.{key}", value[key])
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _leaves(f"{name}.{index}", item)
    else:
        yield name, value


def nbytes(batch: Any) -> int:
    """Bytes of a batch's tensors."""
    return sum(value.nbytes for _, value in _leaves("", batch) if isinstance(value, (torch.Tensor, np.ndarray)))
