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
    number = int.from_bytes(key[:8], "little")
    torch.default_generator.manual_seed(number >> 1)  # torch.manual_seed would also visit every device: 100 us
    random.seed(number)
    np.random.seed(number & 0xFFFFFFFF)
