"""What a dataset costs a worker is known before one is started: what is sent to it, and what it comes to copy."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import numpy as np
import pytest
import torch

from feedrate.dataset.ids import IDs
from feedrate.dataset.subset import held_out
from feedrate.loader.worker_footprint import Parcel, inherited, sent
from loader.datasets import Blocks, Numbers

TEXTS = 20_000


def texts() -> list[str]:
    return [f"sample-{i:09d}.jpg" for i in range(TEXTS)]


def holding(held: Any) -> Blocks:
    return Blocks(10, 4, held)


def test_what_is_sent_of_plain_objects_is_their_pickle() -> None:
    dataset = holding({"names": texts(), "numbers": [1.5] * 1000})
    parcel = sent(dataset, set())
    assert parcel.copied == pytest.approx(len(pickle.dumps(dataset)), rel=0.01)
    assert parcel.copied + parcel.objects == inherited(dataset).objects > 2 * parcel.copied  # larger than their pickle
    assert parcel.shared == 0


def test_arrays_are_sent_and_tensors_are_shared() -> None:
    parcel = sent(holding([np.zeros(1_000_000), torch.zeros(500_000)]), set())
    assert parcel.copied == pytest.approx(8_000_000, abs=2_000)
    assert parcel.shared == 2_000_000


def test_a_tensor_that_is_there_twice_or_is_shared_already_counts_once_or_not() -> None:
    tensor, shared = torch.zeros(1000), torch.zeros(1000).share_memory_()
    assert sent(holding([tensor, tensor[:10], shared]), set()).shared == 4000


def test_parts_of_one_dataset_share_its_tensors() -> None:
    whole = holding(torch.zeros(250_000))
    seen: set[int] = set()
    first, second = (sent(part, seen) for part in held_out(whole, 2, seed=0))
    assert (first.shared, second.shared) == (1_000_000, 0)


def test_ids_of_a_catalog_cost_a_worker_nothing_however_many() -> None:
    ids = IDs(texts())
    dataset = holding(ids)
    assert inherited(dataset).objects < 2_000
    parcel = sent(dataset, set())
    assert parcel.copied + parcel.objects < 2_000
    assert parcel.shared == ids.nbytes


def test_what_cannot_be_sent_is_left_to_the_error_that_says_so() -> None:
    assert sent(holding(threading.Lock()), set()) == Parcel()


@pytest.mark.parametrize(
    "held",
    [
        texts(),
        [(name, float(i)) for i, name in enumerate(texts())],
        {name: i + 1000 for i, name in enumerate(texts())},
        {"a": {"names": texts()}},
        tuple(texts()),
        set(texts()),
    ],
    ids=["list", "tuples", "dictionary", "nested", "tuple", "set"],
)
def test_objects_that_forked_workers_come_to_copy_are_told_from_a_few_of_them(held: Any) -> None:
    one = 67  # bytes of such a text
    assert one * TEXTS <= inherited(holding(held)).objects <= 3 * one * TEXTS


def test_numbers_in_arrays_and_datasets_that_compute_have_none() -> None:
    for dataset in (holding(np.arange(10**6)), holding(torch.arange(10**6)), Numbers(10**15), holding(range(10**9))):
        assert inherited(dataset).objects < 2_000


def test_a_dataset_that_holds_itself_is_no_riddle() -> None:
    dataset = holding([])
    dataset.held = [dataset, dataset]
    assert inherited(dataset).objects < 5_000
