"""The split: by ratio and seed, every class with its share in each partition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feedrate.dataset.writing.prepare import split
from feedrate.errors import UserError


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    validation=st.sampled_from([0.01, 0.1, 0.2, 0.25, 0.5, 0.8]),
    test=st.sampled_from([0.0, 0.05, 0.15]),
    seed=st.integers(0, 2**63 - 1),
)
def test_each_class_keeps_its_share_and_every_sample_its_one_place(
    sizes: list[int], validation: float, test: float, seed: int
) -> None:
    y = np.repeat(np.arange(len(sizes)), sizes)
    try:
        parts = split(y.tolist(), validation, test, seed)
    except UserError:
        assert min(validation, test or 1, 1 - validation - test) * len(y) < 1  # a partition would be empty
        return
    assert list(parts) == (["train", "validation", "test"] if test else ["train", "validation"])
    assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(len(y)))
    assert all(len(part) and (np.diff(part) > 0).all() for part in parts.values())
    for name, fraction in (("validation", validation), ("test", test)):
        for count, size in zip(np.bincount(y[parts.get(name, [])], minlength=len(sizes)), sizes, strict=True):
            assert abs(count - size * fraction) < 2
        assert abs(len(parts.get(name, [])) - len(y) * fraction) < 1


def test_many_classes_together_have_the_ratio_that_was_asked_for() -> None:
    y = np.repeat(np.arange(100), 7).tolist()
    parts = split(y, 0.2, 0.1, seed=0)
    assert {name: len(part) for name, part in parts.items()} == {"train": 490, "validation": 140, "test": 70}


@pytest.mark.parametrize(
    "y",
    [
        np.arange(100) % 4,
        np.array([f"class {i % 4}" for i in range(100)]),
        np.linspace(0, 1, 100),
        np.zeros((100, 3)),
        np.zeros((100, 3), dtype=np.int64),
    ],
)
def test_the_seed_decides_and_nothing_else(y: np.ndarray) -> None:
    first, again, other = (split(y.tolist(), 0.25, 0.1, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["train"], other["train"])
    assert {name: len(part) for name, part in first.items()} == {"train": 65, "validation": 25, "test": 10}


def test_a_split_is_not_the_beginning_of_the_file() -> None:
    for y in (np.zeros(1000, dtype=np.int64), np.linspace(0, 1, 1000)):
        validation = split(y.tolist(), 0.2, 0.0, seed=0)["validation"]
        assert 400 < validation.mean() < 600


@pytest.mark.parametrize(("count", "test", "left"), [(0, 0.0, "validation"), (1, 0.0, "train"), (2, 0.1, "test")])
def test_too_few_samples_are_refused(count: int, test: float, left: str) -> None:
    with pytest.raises(UserError, match=f"no sample of {count} is left for {left}; change the fractions"):
        split(np.linspace(0, 1, count).tolist(), 0.5, test, seed=0)
