"""The order of an epoch's samples as a function of (seed, epoch, position), and the batches it is cut into."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from feedrate.dataset.rng import GAMMA, mix64

BLOCK = 65_536  # positions computed at once, and hashed at once by the digest
_AT_ONCE = 8_192  # values enciphered at once; they fit into a core's cache
_SMALL = 4_096  # fewer samples get more rounds: one mixes less, and costs little
_32 = np.array(32, np.uint64)  # an array, which NumPy would otherwise create at each use


class Order:
    """Position p of an epoch holds sample `perm(seed, epoch)(p)`; without shuffle, sample p.

    The permutation is a generalised Feistel cipher on Z_a x Z_b with a * b just above N, and cycle walking for the few
    values beyond N; b is even, since a and b odd would give even permutations only. Source: J. Black, P. Rogaway,
    "Ciphers with Arbitrary Finite Domains", CT-RSA 2002, sections 3 and 5; the round function is the finaliser of
    SplitMix64 (Steele et al., OOPSLA 2014), keyed by SHA-256.
    """

    def __init__(self, size: int, seed: int, epoch: int, shuffle: bool) -> None:
        self.size, self.seed, self.epoch, self.shuffle = size, seed, epoch, shuffle
        self._a = max(1, math.isqrt(max(size - 1, 0)) + 1)
        self._b = -(-size // self._a)
        self._b += self._b % 2
        text = f"feedrate order 1,{seed},{epoch},{size}".encode()
        rounds = 24 if size < _SMALL else 12
        stream = b"".join(hashlib.sha256(text + bytes([i])).digest() for i in range(rounds // 4))  # four keys in each
        self._keys = np.frombuffer(stream, dtype="<u8").astype(np.uint64)
        self._kept = -1, np.empty(0, dtype=np.int64)  # a block and its indices, in one tuple as threads share it

    def __eq__(self, other: object) -> bool:
        key = self.size, self.seed, self.epoch, self.shuffle
        return isinstance(other, Order) and key == (other.size, other.seed, other.epoch, other.shuffle)

    __hash__ = None  # type: ignore[assignment]

    def indices(self, start: int, stop: int) -> np.ndarray:
        """Sample indices at the positions [start, stop): (stop - start,) int64."""
        assert 0 <= start <= stop <= self.size, (start, stop, self.size)
        if not self.shuffle:
            return np.arange(start, stop, dtype=np.int64)
        parts = []
        while start < stop:
            first = start - start % BLOCK
            kept, indices = self._kept
            if kept != first:
                indices = self._permute(first, min(first + BLOCK, self.size))
                self._kept = first, indices
            until = min(stop, first + BLOCK)
            parts.append(indices[start - first : until - first])
            start = until
        return parts[0] if len(parts) == 1 else np.concatenate(parts or [np.empty(0, dtype=np.int64)])

    def _permute(self, start: int, stop: int) -> np.ndarray:
        values = self._encipher(np.arange(start, stop, dtype=np.uint64))
        outside = np.flatnonzero(values >= self.size)
        while len(outside):  # cycle walking: encipher until the value is below N
            values[outside] = self._encipher(values[outside])
            outside = outside[values[outside] >= self.size]
        return values.astype(np.int64)

    def _encipher(self, values: np.ndarray) -> np.ndarray:
        for first in range(0, len(values), _AT_ONCE):
            self._encipher_in_place(values[first : first + _AT_ONCE])
        return values

    def _encipher_in_place(self, values: np.ndarray) -> None:
        a, b = np.array(self._a, dtype=np.uint64), np.array(self._b, dtype=np.uint64)
        left, right = np.divmod(values, b)
        spare = np.empty_like(left)
        for number, key in enumerate(self._keys):
            (half, other, limit) = (left, right, a) if number % 2 == 0 else (right, left, b)
            half += _below(other + key, limit, spare)
            np.subtract(half, limit, out=spare)  # wraps to a large number where it would be negative
            np.minimum(half, spare, out=half)
        np.multiply(left, b, out=values)
        values += right


def _below(z: np.ndarray, limit: np.ndarray, spare: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser of z, scaled to [0, limit), in place; limit below 2**32."""
    z *= GAMMA
    mix64(z, spare)
    z >>= _32
    z *= limit
    z >>= _32
    return z


def rank_part(start: int, stop: int, rank: int, world_size: int) -> tuple[int, int]:
    """The contiguous part of the global batch [start, stop) that a rank takes; parts differ by one at most."""
    count = stop - start
    return start + count * rank // world_size, start + count * (rank + 1) // world_size


@dataclass(frozen=True)
class BatchRequest:
    """One batch to load."""

    epoch: int
    start: int  # position of the global batch in the epoch's order
    stop: int
    indices: np.ndarray  # (n,) int64, this rank's samples; empty where they are not known (TorchLoader)


@dataclass(frozen=True)
class Plan:
    """The rest of an epoch cut into global batches, and one rank's part of each. Iterating gives the requests.

    No rank gets an empty batch: if the last one has fewer samples than ranks, some of them skip it, and their batch
    before it counts up to the epoch's end, so that all ranks end at the same position.
    """

    order: Order
    start: int  # position of the first batch
    batch: int  # samples of a global batch
    drop_last: bool
    rank: int
    world_size: int

    @property
    def end(self) -> int:
        """The position after the last batch."""
        size = self.order.size
        return size - (size - self.start) % self.batch if self.drop_last else size

    def __len__(self) -> int:
        full, rest = divmod(self.end - self.start, self.batch)
        first, last = rank_part(0, rest, self.rank, self.world_size)
        return full + (last > first)

    def __iter__(self) -> Iterator[BatchRequest]:
        count, end = len(self), self.end
        for number in range(count):
            start = self.start + number * self.batch
            first, last = rank_part(start, min(start + self.batch, end), self.rank, self.world_size)
            stop = end if number == count - 1 else start + self.batch
            yield BatchRequest(self.order.epoch, start, stop, self.order.indices(first, last))
