"""Random numbers keyed by sample, so that they do not depend on the worker that loads it."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_current = threading.local()
GAMMA = np.array(0x9E3779B97F4A7C15, np.uint64)  # arrays, as NumPy would convert a number at each use
_SECOND, _THIRD = np.array(0xBF58476D1CE4E5B9, np.uint64), np.array(0x94D049BB133111EB, np.uint64)
_27, _30, _31 = (np.array(n, np.uint64) for n in (27, 30, 31))


def mix64(z: np.ndarray, spare: np.ndarray | None = None) -> np.ndarray:
    """SplitMix64's finaliser of uint64 values, in place. Source: Steele et al., OOPSLA 2014.

    Args:
        spare: memory like z for intermediate results.
    """
    z ^= np.right_shift(z, _30, out=spare)
    z *= _SECOND
    z ^= np.right_shift(z, _27, out=spare)
    z *= _THIRD
    z ^= np.right_shift(z, _31, out=spare)
    return z


def sample_rng(number: int = 0) -> np.random.Generator:
    """The random generator of the sample being loaded, seeded from (seed, epoch, ID, occurrence).

    Calls within one `__getitem__` return the same generator. Outside a loader with a seed it is seeded from torch's
    global generator.

    Args:
        number: within `__getitems__(indices)`, the position of the sample in `indices`.

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
    """A key of 16 bytes for one use of one sample."""
    text = f"{seed},{epoch},{occurrence},{ID}".encode()
    return hashlib.blake2b(text, digest_size=16, person=b"feedrate sample").digest()


def _global_states() -> tuple[Any, ...]:
    return torch.get_rng_state(), random.getstate(), np.random.get_state()


def _comparable() -> dict[str, Any]:
    of_torch, of_python, of_numpy = _global_states()
    return {"torch's": of_torch.tolist(), "Python's": of_python, "NumPy's": repr(of_numpy)}


@contextmanager
def sample_seeds() -> Iterator[None]:
    """Restores the global generators on leaving, so that `name_sample` may be used within."""
    of_torch, of_python, of_numpy = _global_states()
    try:
        yield
    finally:
        _current.keys = None
        torch.set_rng_state(of_torch)
        random.setstate(of_python)
        np.random.set_state(of_numpy)


@contextmanager
def draws_from_globals() -> Iterator[list[str]]:
    """Same as `sample_seeds`; the list then names the global generators that were used, such as "torch's"."""
    drew: list[str] = []
    with sample_seeds():
        before = _comparable()
        yield drew
        drew += [name for name, state in _comparable().items() if state != before[name]]


def name_sample(seed: int, epoch: int, ID: str, occurrence: int = 0) -> None:
    """Sets the sample of `sample_rng`, and seeds torch's, Python's and NumPy's global generators from it."""
    key = sample_key(seed, epoch, ID, occurrence)
    name_samples([key])
    seed_globals(key)


def name_samples(keys: list[bytes]) -> None:
    """Sets the samples of `sample_rng` in this thread, which are loaded together."""
    _current.keys, _current.generators = keys, {}


def seed_globals(key: bytes) -> None:
    """Seeds torch's, Python's and NumPy's global generators from a sample's key."""
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
    """Seeds the global generators for one sample after another: Python's and NumPy's only if the samples use them.

    Seeding these two can take longer than loading a sample. They start from a known state beside a copy: one that has
    advanced beyond its copy was used by the sample, which must be loaded again, seeded, as all samples from then on.
    """

    def __init__(self) -> None:
        self._needed = False
        self._python, self._numpy = random.Random(0), np.random.RandomState(0)

    def begin(self) -> None:
        """Call before the first sample of a batch."""
        if not self._needed:
            random.seed(0)
            self._python.seed(0)
            np.random.seed(0)
            self._numpy.seed(0)

    def seed(self, key: bytes) -> None:
        """Call before the sample with this key."""
        _seed_torch(key)  # always: torch.initial_seed() would tell the difference
        if self._needed:
            _seed_slow(key)

    def missed(self) -> bool:
        """Whether the sample since `seed` has used a generator that was not seeded for it."""
        if self._needed:
            return False
        self._needed = (
            random.getrandbits(64) != self._python.getrandbits(64)
            or np.random.random_sample() != self._numpy.random_sample()
        )
        return self._needed

    def finish(self, key: bytes) -> None:
        """Call after the last sample, with its key: collating may use the generators, too."""
        if not self._needed:
            _seed_slow(key)
