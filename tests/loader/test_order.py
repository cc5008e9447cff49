"""The order is a uniform, frozen permutation that is a function of (seed, epoch, position) alone."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from feedrate.loader import Order
from feedrate.loader.order import BLOCK, Plan, rank_part

# 1 - 1e-5 quantiles of the chi-square distribution: a uniform order passes with any seed, and these seeds are fixed
CHI_SQUARE = {5: 31.8, 23: 66.5, 119: 194.0, 199: 295.0}


def chi_square(counts: np.ndarray) -> float:
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2).sum() / expected)


def whole(size: int, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return Order(size, seed, epoch, True).indices(0, size)


# ---------------------------------------------------------------------------------------------------------
# a permutation
# ---------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None, derandomize=True)
@given(size=st.integers(0, 5000), seed=st.integers(-(2**70), 2**70), epoch=st.integers(0, 2**40))
def test_every_sample_stands_once_in_an_epoch(size: int, seed: int, epoch: int) -> None:
    indices = whole(size, seed, epoch)
    assert indices.dtype == np.int64
    assert np.array_equal(np.sort(indices), np.arange(size))


def test_every_sample_stands_once_for_each_small_size() -> None:
    for size in range(400):
        assert sorted(whole(size, seed=1).tolist()) == list(range(size))


@pytest.mark.parametrize("size", [BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 7, 300_000])
def test_every_sample_stands_once_across_block_borders(size: int) -> None:
    assert np.array_equal(np.sort(whole(size)), np.arange(size))


@pytest.mark.parametrize("size", [10**12, 2**62, 2**63 - 1])
def test_enormous_sizes_need_neither_memory_nor_time(size: int) -> None:
    indices = Order(size, 0, 0, True).indices(size - 1000, size)
    assert len(set(indices.tolist())) == 1000
    assert 0 <= indices.min() < size // 4 < 3 * (size // 4) < indices.max() < size


def test_without_shuffle_the_order_is_that_of_the_dataset() -> None:
    order = Order(100_000, 3, 7, False)
    assert np.array_equal(order.indices(65_000, 66_000), np.arange(65_000, 66_000))
    assert order.indices(5, 5).size == 0


# ---------------------------------------------------------------------------------------------------------
# a function of (seed, epoch, position)
# ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_part_equals_the_same_part_of_the_whole(data: st.DataObject) -> None:
    size = data.draw(st.sampled_from([1, 10, 1000, BLOCK + 10, 2 * BLOCK + 10]))
    expected = whole(size, seed=5, epoch=2)
    order = Order(size, 5, 2, True)
    for _ in range(4):  # one object, read forwards and backwards
        start = data.draw(st.integers(0, size))
        stop = data.draw(st.integers(start, min(size, start + 1000)))
        assert np.array_equal(order.indices(start, stop), expected[start:stop])


def test_seed_epoch_and_size_each_make_another_order() -> None:
    base = whole(1000)
    for other in (whole(1000, seed=1), whole(1000, epoch=1), whole(1001), whole(1000, seed=-1)):
        assert np.mean(base == other[:1000]) < 0.01
    assert np.mean(whole(1000, seed=1) == whole(1000, epoch=1)) < 0.01


def test_the_order_never_changes_between_versions() -> None:
    # every digest, checkpoint and published result rests on these numbers: a change of them is a change of all of those
    assert whole(1797, seed=0, epoch=0)[:8].tolist() == [937, 1005, 1516, 1269, 516, 196, 733, 613]
    assert whole(1797, seed=0, epoch=1)[:8].tolist() == [812, 1306, 1326, 431, 1504, 1530, 1433, 1162]
    assert whole(10, seed=42, epoch=3).tolist() == [2, 7, 5, 1, 9, 6, 8, 0, 4, 3]
    border = Order(10**7, 1, 0, True).indices(BLOCK - 3, BLOCK + 3).tolist()
    assert border == [7825478, 2262333, 5886290, 3794137, 9456940, 5589580]


# ---------------------------------------------------------------------------------------------------------
# uniform
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "epochs"), [(3, 1000), (4, 1500), (5, 3000)])
def test_all_permutations_of_a_few_samples_are_equally_frequent(size: int, epochs: int) -> None:
    seen = Counter(tuple(whole(size, seed=9, epoch=epoch).tolist()) for epoch in range(epochs))
    counts = np.array([seen[p] for p in permutations(range(size))])
    assert chi_square(counts) < CHI_SQUARE[len(counts) - 1]


def test_every_sample_is_equally_likely_first_and_last() -> None:
    orders = [whole(200, seed=2, epoch=epoch) for epoch in range(2000)]
    for position in (0, 199):
        counts = np.bincount([order[position] for order in orders], minlength=200)
        assert chi_square(counts) < CHI_SQUARE[199]


def test_positions_neighbours_and_epochs_are_uncorrelated() -> None:
    size, epochs = 1000, 400
    orders = np.stack([whole(size, seed=4, epoch=epoch) for epoch in range(epochs)]).astype(float)
    centred = (orders - orders.mean(1, keepdims=True)) / orders.std(1, keepdims=True)
    bound = 4.5 / np.sqrt(size)  # 4.5 standard deviations of one epoch's correlation
    mean_bound = bound / np.sqrt(epochs)

    place = (np.arange(size) - (size - 1) / 2) / np.arange(size).std()
    by_place = centred @ place / size
    by_neighbour = (centred[:, 1:] * centred[:, :-1]).mean(1)
    by_epoch = (centred[1:] * centred[:-1]).mean(1)
    for found in (by_place, by_neighbour, by_epoch):
        assert np.abs(found).max() < bound
        assert abs(found.mean()) < 1.3 * mean_bound

    # a sample's neighbour in the dataset follows it as often as any other sample does: once an epoch, on average
    followed = (np.diff(orders, axis=1) == 1).sum(1)
    assert 0.7 < followed.mean() < 1.3


def test_a_batch_is_spread_over_the_whole_dataset() -> None:
    size = 100_000
    order = Order(size, 0, 0, True)
    counts = sum(np.bincount(order.indices(b, b + 1000) * 10 // size, minlength=10) for b in range(0, 20_000, 1000))
    assert chi_square(np.asarray(counts)) < 40  # nine degrees of freedom


# ---------------------------------------------------------------------------------------------------------
# ranks
# ---------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None, derandomize=True)
@given(start=st.integers(0, 10**9), count=st.integers(0, 1000), world_size=st.integers(1, 64))
def test_rank_parts_are_contiguous_and_partition_the_batch(start: int, count: int, world_size: int) -> None:
    parts = [rank_part(start, start + count, rank, world_size) for rank in range(world_size)]
    assert parts[0][0] == start
    assert parts[-1][1] == start + count
    assert all(one[1] == next_one[0] for one, next_one in pairwise(parts))
    lengths = [last - first for first, last in parts]
    assert max(lengths) - min(lengths) <= 1


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    size=st.integers(0, 200),
    batch=st.integers(1, 12),
    world_size=st.integers(1, 6),
    drop_last=st.booleans(),
    data=st.data(),
)
@example(size=37, batch=3, world_size=4, drop_last=False, data=None)
def test_ranks_together_take_each_sample_of_the_rest_once(
    size: int, batch: int, world_size: int, drop_last: bool, data: st.DataObject | None
) -> None:
    start = data.draw(st.integers(0, size)) if data else 1
    order = Order(size, 0, 0, True)
    plans = [Plan(order, start, batch * world_size, drop_last, rank, world_size) for rank in range(world_size)]
    taken: dict[int, list[np.ndarray]] = {}
    for plan in plans:
        rows = list(plan)
        assert len(rows) == len(plan)
        assert all(len(row.indices) for row in rows)  # no rank gets an empty batch
        assert [row.start for row in rows] == [start + batch * world_size * i for i in range(len(rows))]
        assert not rows or rows[-1].stop == plan.end  # every rank ends at the same position
        for row in rows:
            taken.setdefault(row.start, []).append(row.indices)
    together = np.concatenate([part for first in sorted(taken) for part in taken[first]] or [np.empty(0, np.int64)])
    assert np.array_equal(together, order.indices(start, plans[0].end))
    rest = (size - start) % (batch * world_size)
    assert plans[0].end == (size - rest if drop_last else size)
