"""Random numbers that belong to a sample, not to the worker that happens to load it.

The loader names the sample before it calls `__getitem__`; augmentation asks `sample_rng()`.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_current = threading.local()


def sample_rng(number: int = 0) -> np.random.Generator:
    """The random numbers of the sample being loaded: a function of (seed, epoch, ID, occurrence).

    Two calls within one `__getitem__` return the same generator, so that two transforms do not draw the same
    numbers. Outside a loader with a seed it is seeded from torch's global generator.

    Args:
        number: within `__getitems__`, which of the samples asked for is meant, from 0 on.

    Source of the generator: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (Philox).
    """
    keys: list[bytes] | None = getattr(_current, "keys", None)
    if keys is None:
        return np.random.Generator(np.random.Philox(key=int(torch.randint(2**62, ()).item())))
    generators: dict[int, np.random.Generator] = _current.generators
    if number not in generators:
        generators[number] = np.random.Generator(np.random.Philox(key=int.from_bytes(keys[number], "little")))
    return generators[number]


def sample_key(seed: int, epoch: int, ID: str, occurrence: int = 0) -> bytes:
    """16 bytes that identify one use of one sample."""
    text = f"{seed},{epoch},{occurrence},{ID}".encode()
    return hashlib.blake2b(text, digest_size=16, person=b"feedrate sample").digest()


@contextmanager
def sample_seeds() -> Iterator[None]:
    """Within it, `name_sample` may seed; on leaving, the global generators are as they were before."""
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        _current.keys = None
        torch.set_rng_state(state[0])
        random.setstate(state[1])
        np.random.set_state(state[2])


@contextmanager
def draws_from_globals() -> Iterator[list[str]]:
    """As `sample_seeds`; afterwards the list names those global generators that were drawn from, such as "torch's"."""
    drew: list[str] = []
    with sample_seeds():
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()
        yield drew
        if not torch.equal(torch.get_rng_state(), before[0]):
            drew.append("torch's")
        if random.getstate() != before[1]:
            drew.append("Python's")
        if any(not np.array_equal(*pair) for pair in zip(np.random.get_state(), before[2], strict=True)):
            drew.append("NumPy's")


def name_sample(seed: int, epoch: int, ID: str, occurrence: int = 0) -> None:
    """Names the sample that is loaded next, and seeds torch's, Python's and NumPy's global generators from it."""
    key = sample_key(seed, epoch, ID, occurrence)
    name_samples([key])
    seed_globals(key)


def name_samples(keys: list[bytes]) -> None:
    """Whose random numbers `sample_rng` gives from now on, in this thread: those of samples loaded together."""
    _current.keys, _current.generators = keys, {}


def seed_globals(key: bytes) -> None:
    """Seeds torch's, Python's and NumPy's global generators, which all threads share, from a sample's key."""
    _seed_torch(key)
    _seed_slow(key)


def _seed_torch(key: bytes) -> None:
    # torch.manual_seed would also visit every device: 100 us
    torch.default_generator.manual_seed(int.from_bytes(key[:8], "little") >> 1)


def _seed_slow(key: bytes) -> None:
    number = int.from_bytes(key[:8], "little")
    random.seed(number)
    np.random.seed(number & 0xFFFFFFFF)


class GlobalSeeds:
    """Seeds the global generators for one sample after another: Python's and NumPy's only where they are drawn from.

    To seed these two takes longer than to load many a sample. So they run on from a known state, each beside a twin:
    where one has come further than its twin, a sample has drawn from it, and must be loaded again, seeded. From that
    sample on they are seeded for each, so the numbers are those that seeding for every sample would have given.
    """

    def __init__(self) -> None:
        self._needed = False
        self._python, self._numpy = random.Random(0), np.random.RandomState(0)

    def __reduce__(self) -> tuple[type[GlobalSeeds], tuple[()]]:
        return GlobalSeeds, ()  # another process learns for itself

    def begin(self) -> None:
        """Before the first sample of a batch; whatever had been done to the generators before."""
        if not self._needed:
            random.seed(0)
            self._python.seed(0)
            np.random.seed(0)
            self._numpy.seed(0)

    def seed(self, key: bytes) -> None:
        """Before the sample with this key."""
        if self._needed:
            seed_globals(key)
        else:  # torch's always: torch.initial_seed() would tell the difference
            _seed_torch(key)

    def missed(self) -> bool:
        """Whether the sample since then has drawn from a generator that was not seeded for it."""
        if self._needed:
            return False
        self._needed = (
            random.getrandbits(64) != self._python.getrandbits(64)
            or np.random.random_sample() != self._numpy.random_sample()
        )
        return self._needed

    def finish(self, key: bytes) -> None:
        """After the last sample, with this key: collating may draw, too."""
        if not self._needed:
            _seed_slow(key)
