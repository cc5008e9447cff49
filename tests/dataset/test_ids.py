"""IDs and labels behave as a list and a dictionary, cost a few bytes each, and are shared with workers, not copied."""

from __future__ import annotations

import multiprocessing
import pickle
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing  # teaches ForkingPickler tensors, as a DataLoader does
from hypothesis import given, settings
from hypothesis import strategies as st

from feedrate.dataset import IDs, Labels, ids
from feedrate.dataset.ids import encode
from feedrate.errors import UserError

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
MANY = 10_000
repeatable = settings(derandomize=True, deadline=None, max_examples=100)


def naive(names: list[str]) -> bytes:
    return b"".join(len(name.encode()).to_bytes(4, "little") + name.encode() for name in names)


@repeatable
@given(st.lists(text), st.slices(20))
def test_any_texts_come_back_as_from_a_list(names: list[str], part: slice) -> None:
    found = IDs(names)
    assert list(found) == names
    assert len(found) == len(names)
    assert [found[i] for i in range(-len(names), len(names))] == names + names
    assert found[part] == names[part]
    assert list(reversed(found)) == names[::-1]
    assert list(pickle.loads(pickle.dumps(found))) == names
    for beyond in (len(names), -len(names) - 1):
        with pytest.raises(IndexError, match=f"of {len(names)} IDs"):
            found[beyond]


@repeatable
@given(st.lists(text, min_size=1), st.data())
def test_encoding_many_at_once_equals_encoding_each(names: list[str], data: st.DataObject) -> None:
    picked = data.draw(st.lists(st.integers(0, len(names) - 1)))
    indices = np.array(picked, dtype=np.int64)
    expected = naive([names[i] for i in picked])
    assert encode(IDs(names), indices) == expected
    assert encode(names, indices) == expected
    assert encode(None, indices) == naive([str(i) for i in picked])


def test_an_ID_costs_8_bytes_beyond_its_characters_and_with_its_label_less_than_64() -> None:
    names = [f"scans/{i:07d}" for i in range(MANY)]
    found = IDs(names)
    nbytes = found.text.nbytes + found.ends.nbytes
    assert nbytes == sum(map(len, names)) + 8 * MANY
    assert len(pickle.dumps(found)) < nbytes + 1_000
    labels = Labels(found, torch.zeros(MANY, dtype=torch.int64))
    assert labels[names[7]] == 0
    assert labels._sorted is not None
    beyond = nbytes - sum(map(len, names)) + labels.tensor.nbytes + sum(t.nbytes for t in labels._sorted)
    assert beyond <= 64 * MANY


@pytest.mark.parametrize(
    ("value", "named"), [(7, "7"), (None, "None"), (b"x", "bytes"), ("\ud800", "Unicode")], ids=repr
)
def test_what_no_file_name_can_be_is_refused_with_its_value(value: Any, named: str) -> None:
    with pytest.raises(UserError, match=named):
        IDs(["a", value])


@repeatable
@given(st.dictionaries(text, st.integers(-(2**63), 2**63 - 1)), text)
def test_labels_are_looked_up_as_in_a_dictionary(expected: dict[str, int], other: str) -> None:
    labels = Labels(IDs(expected), torch.tensor(list(expected.values()), dtype=torch.int64))
    assert dict(labels) == expected
    assert list(labels) == list(expected)
    assert labels == expected
    assert (other in labels) == (other in expected)
    if other not in expected:
        with pytest.raises(KeyError):
            labels[other]
    assert labels.get(other, "none") == expected.get(other, "none")


@pytest.mark.parametrize("key", [3, None, b"a", ("a",), "\ud800"], ids=repr)
def test_what_is_no_ID_has_no_label(key: Any) -> None:
    labels = Labels(IDs(["a", "3"]), torch.tensor([1, 2]))
    assert key not in labels
    with pytest.raises(KeyError):
        labels[key]


def test_labels_are_numbers_or_vectors_as_training_needs_them() -> None:
    names = IDs(["a", "b"])
    assert isinstance(Labels(names, torch.tensor([4, 5]))["b"], int)
    assert Labels(names, torch.tensor([0.5, 1.5]))["b"] == 1.5
    assert torch.equal(Labels(names, torch.tensor([[1.0, 2], [3, 4]]))["b"], torch.tensor([3.0, 4]))


def test_IDs_with_equal_hashes_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids, "_hash", len)  # two in 2**64 would take some waiting
    names = ["aa", "b", "cc", "d", "eee", "ff"]
    labels = Labels(IDs(names), torch.arange(6))
    assert [labels[name] for name in names] == list(range(6))
    assert "xx" not in labels
    assert "xxxx" not in labels


def test_IDs_and_labels_survive_a_queue_and_so_does_the_original() -> None:
    names = [f"{i}" for i in range(MANY)]
    found = IDs(names)
    labels = Labels(found, torch.arange(MANY))
    labels.index()
    packed = bytes(ForkingPickler.dumps(labels))
    junk = torch.rand(MANY)  # would land in memory that was given back too early
    assert list(found) == names
    assert labels["77"] == 77
    copy = pickle.loads(packed)
    assert list(copy) == names
    assert copy["9999"] == 9999
    assert len(junk) == MANY


def _report(labels: Labels, answer: Any) -> None:
    tensors = [labels.tensor, labels.list_IDs.text, labels.list_IDs.ends, *(labels._sorted or ())]
    answer.send((all(t.is_shared() for t in tensors), len(tensors), list(labels.list_IDs), labels["5"], "x" in labels))


def test_a_spawned_worker_maps_IDs_and_labels_instead_of_copying_them() -> None:
    names = [f"{i}" for i in range(MANY)]
    labels = Labels(IDs(names), torch.arange(MANY))
    labels.index()
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    worker = context.Process(target=_report, args=(labels, there))
    worker.start()
    try:
        assert here.poll(120)
        assert here.recv() == (True, 5, names, 5, False)
        assert list(labels.list_IDs) == names
        assert labels["77"] == 77
    finally:
        worker.join()
    assert worker.exitcode == 0
