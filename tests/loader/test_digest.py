"""The digest of the order is what DESIGN.md defines, at any position and across restarts."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feedrate.dataset import IDs
from feedrate.errors import UserError
from feedrate.loader import Order
from feedrate.loader.digest import OrderDigest, content_hash, nbytes

BLOCK = 65_536
NAMES = [f"scan {i}/ü" * (i % 3) + str(i) for i in range(150_000)]
NAMES_PACKED = IDs(NAMES)


def defined(epochs: Sequence[Sequence[str]]) -> str:
    """The definition in a few lines: a chain over blocks of 65,536 IDs, each with its length before it."""
    chain = hashlib.sha256(b"feedrate order digest 1").digest()
    for delivered in epochs:
        for start in range(0, len(delivered), BLOCK):
            digest = hashlib.sha256(chain)
            for ID in delivered[start : start + BLOCK]:
                text = ID.encode()
                digest.update(len(text).to_bytes(4, "little") + text)
            chain = digest.digest()
    return chain.hex()


def order(size: int, epoch: int = 0) -> Order:
    return Order(size, 3, epoch, True)


def delivered(size: int, epoch: int, count: int, names: Sequence[str] = NAMES) -> list[str]:
    return [names[i] for i in order(size, epoch).indices(0, count).tolist()]


# ---------------------------------------------------------------------------------------------------------
# the order's
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0, 1, 100, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 150_000])
def test_the_digest_is_a_chain_of_sha256_over_blocks_of_length_prefixed_IDs(position: int) -> None:
    digest = OrderDigest(NAMES)
    digest.begin(order(150_000), 0)
    assert digest.at(position) == defined([delivered(150_000, 0, position)])


def test_the_chain_goes_through_epochs_also_those_that_ended_early() -> None:
    digest = OrderDigest(NAMES)
    digest.begin(order(1000, 0), 0)
    digest.begin(order(1000, 1), 1000)
    digest.begin(order(1000, 5), 640)
    expected = [delivered(1000, 0, 1000), delivered(1000, 1, 640), delivered(1000, 5, 77)]
    assert digest.at(77) == defined(expected)


def test_an_earlier_position_can_be_asked_for_after_a_later_one() -> None:
    digest = OrderDigest(NAMES)
    digest.begin(order(150_000), 0)
    late, early = digest.at(150_000), digest.at(BLOCK - 5)
    assert early == defined([delivered(150_000, 0, BLOCK - 5)])
    assert digest.at(150_000) == late
    assert digest.state(BLOCK - 5)["block_start"] == 0


@settings(max_examples=30, deadline=None, derandomize=True)
@given(saved=st.integers(0, 150_000), requested=st.integers(0, 150_000))
def test_the_state_of_any_position_leads_to_the_same_digest(saved: int, requested: int) -> None:
    whole = OrderDigest(NAMES_PACKED)
    whole.begin(order(150_000), 0)
    state = json.loads(json.dumps(whole.state(saved)))
    assert len(str(state)) < 150  # however long the epoch
    resumed = OrderDigest(NAMES_PACKED)
    resumed.load(state, order(150_000))
    position = max(saved, requested)
    assert resumed.at(position) == whole.at(position)


def test_packed_IDs_a_list_and_indices_give_the_same_digest() -> None:
    numbers = [str(i) for i in range(70_000)]
    found = set()
    for names in (None, numbers, IDs(numbers), np.array(numbers)):
        digest = OrderDigest(names)
        digest.begin(order(70_000), 0)
        found.add(digest.at(70_000))
    assert found == {defined([delivered(70_000, 0, 70_000, numbers)])}


def test_IDs_that_only_together_have_the_same_characters_give_another_digest() -> None:
    first, second = OrderDigest(["ab", "c"]), OrderDigest(["a", "bc"])
    for digest in (first, second):
        digest.begin(Order(2, 0, 0, False), 0)
    assert first.at(2) != second.at(2)


def test_the_digest_never_changes_between_versions() -> None:
    digest = OrderDigest(None)
    digest.begin(Order(1797, 0, 0, True), 0)
    assert digest.at(1797) == "3edd835dcd50864af0d19f4db9ed4441da03d9901350dc761ef654d4ef1ad74e"


# ---------------------------------------------------------------------------------------------------------
# the content's
# ---------------------------------------------------------------------------------------------------------


@dataclass
class Graph:
    nodes: torch.Tensor
    name: str


BATCHES: dict[str, Any] = {
    "tensor": torch.arange(6).reshape(2, 3),
    "transposed": torch.arange(6).reshape(3, 2).t(),
    "dtype": torch.arange(6, dtype=torch.int32).reshape(2, 3),
    "shape": torch.arange(6).reshape(3, 2),
    "pair": [torch.arange(6), torch.arange(6)],
    "dict": {"a": torch.arange(6), "b": [1, "x", None]},
    "other key": {"c": torch.arange(6), "b": [1, "x", None]},
    "numpy": np.arange(6),
    "bfloat16": torch.ones(3, dtype=torch.bfloat16),
    "bool": torch.tensor([True, False]),
    "scalar": torch.tensor(1.0),
    "empty": torch.empty(0),
    "conjugate": torch.tensor([1 + 2j]).conj(),
    "complex": torch.tensor([1 + 2j]),
    "dataclass": Graph(torch.arange(3), "g"),
}


def test_batches_that_differ_in_a_name_dtype_shape_or_value_have_different_content() -> None:
    assert len({content_hash(b"", batch) for batch in BATCHES.values()}) == len(BATCHES)


def test_the_content_does_not_depend_on_memory_layout_or_the_order_of_keys() -> None:
    assert content_hash(b"", torch.arange(6).reshape(2, 3).t()) == content_hash(
        b"", torch.tensor([[0, 3], [1, 4], [2, 5]])
    )
    assert content_hash(b"", {"a": 1, "b": 2}) == content_hash(b"", OrderedDict(b=2, a=1))


@pytest.mark.parametrize(
    "value", [object(), torch.eye(2).to_sparse(), np.array([object()])], ids=["object", "sparse", "objects"]
)
def test_content_without_a_definite_form_is_refused_with_the_remedy(value: Any) -> None:
    with pytest.raises(UserError, match=r"loader.content_digest=true: a batch holds .* at \.1, .*content_digest=false"):
        content_hash(b"", [1, value])


def test_bytes_of_a_batch_are_those_of_its_dense_tensors_and_arrays() -> None:
    batch = {"a": torch.zeros(2, 3), "b": (np.zeros(4), "text", [torch.zeros(5, dtype=torch.uint8)])}
    assert nbytes(batch) == 24 + 32 + 5
    assert nbytes(torch.eye(2).to_sparse()) == 0
