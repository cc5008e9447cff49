"""Divides samples into train, validation and test, by ratio and seed; classes keep their shares in each.

Works on labels alone; what the samples are, it does not know.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feedrate.errors import UserError

Indices = NDArray[np.int64]
Parts = dict[str, Indices]


def split(y: NDArray[Any], validation_fraction: float, test_fraction: float, seed: int) -> Parts:
    """Ascending sample indices of each partition; 'test' only where its fraction is not 0.

    Integers and texts are classes: each class keeps its share to within one sample in 'validation' and 'test', and
    has at least one in 'train' and one in 'validation'. Floats and vectors are divided at random.

    Args:
        y: (N,) or (N, K).
        validation_fraction, test_fraction: shares of N, together below 1.
        seed: another one gives another split.

    Raises:
        UserError: too few samples, or a class with a single one.
    """
    total = len(y)
    needed = 3 if test_fraction else 2
    if total < needed:
        raise UserError(f"source: has {total} samples; {needed} are needed, one for each partition")
    classes = np.zeros(total, dtype=np.int64)
    if y.ndim == 1 and y.dtype.kind != "f":
        names, classes = np.unique(y, return_inverse=True)
        _check_classes(names, np.bincount(classes))
    sizes = np.bincount(classes)
    validation = _shares(sizes, validation_fraction, lowest=1, room=sizes - 1)
    test = _shares(sizes, test_fraction, lowest=0, room=sizes - 1 - validation)
    if test_fraction and not test.any():
        largest = int(np.argmax(sizes))
        if sizes[largest] < 3:
            raise UserError("test_fraction: no class has a third sample that could be tested on; set test_fraction=0")
        test[largest] = 1
        validation[largest] = min(validation[largest], sizes[largest] - 2)

    key = hashlib.blake2b(f"{seed}".encode(), digest_size=16, person=b"feedrate split").digest()
    shuffled = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"))).permutation(total)
    by_class = shuffled[np.argsort(classes[shuffled], kind="stable")]
    place = np.arange(total) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # of each sample within its class
    of_class = classes[by_class]
    in_validation = place < validation[of_class]
    in_test = ~in_validation & (place < (validation + test)[of_class])
    parts = {"train": ~in_validation & ~in_test, "validation": in_validation}
    if test_fraction:
        parts["test"] = in_test
    return {name: np.sort(by_class[chosen]).astype(np.int64) for name, chosen in parts.items()}


def _shares(sizes: Indices, fraction: float, lowest: int, room: Indices) -> Indices:
    """How many of each class to take: the whole part of its share, and one more where the rest is largest."""
    if not fraction:
        return np.zeros_like(sizes)
    exact = sizes * fraction
    taken = np.floor(exact + 1e-9).astype(np.int64)
    left = round(float(sizes.sum()) * fraction) - int(taken.sum())
    if left > 0:
        taken[np.argsort(taken - exact, kind="stable")[:left]] += 1
    result: Indices = np.clip(taken, lowest, room)
    return result


def _check_classes(names: NDArray[Any], sizes: Indices) -> None:
    single = names[sizes < 2]
    if len(single):
        shown = ", ".join(repr(name) for name in single[:5].tolist()) + (", ..." if len(single) > 5 else "")
        raise UserError(
            f"source: classes with a single sample: {shown} ({len(single):,} in all); each needs one to train "
            "and one to validate\nTake these samples out, or merge the classes; save a quantity as float"
        )
