"""A batch is a function of (seed, epoch, position): workers, start methods and restarts change nothing."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import random
import re
import sys
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.context import set_spawning_popen
from multiprocessing.popen_spawn_posix import Popen
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Subset

from feedrate.dataset import IDs, TensorFiles, sample_rng
from feedrate.dataset.ids import encode
from feedrate.dataset.rng import name_sample, sample_seeds
from feedrate.errors import SampleError, UserError
from feedrate.loader import Loader, Order
from feedrate.loader.fetcher import BatchFetcher
from loader import datasets
from loader.datasets import Augmented, Numbers, Origin, total

NAMES = [f"scan/{i:03d}" for i in range(37)]
BATCH = 5
BATCHES = 8  # of 37 samples


@dataclass
class Delivered:
    """What a loader delivered: batches by epoch, and its digests at the end."""

    batches: list[list[Any]]
    order: str
    content: str | None

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Delivered)
        return same(self.batches, other.batches) and (self.order, self.content) == (other.order, other.content)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def loader(num_workers: int = 0, names: list[str] | None = NAMES, **settings: Any) -> Loader:
    settings = {"batch_size": BATCH, "shuffle": True, "seed": 7, "content_digest": True, **settings}
    if num_workers:
        settings.setdefault("multiprocessing_context", "fork")
    return Loader(Augmented(names), num_workers=num_workers, **settings)


def deliver(made: Loader, epochs: int = 2) -> Delivered:
    batches = [list(made) for _ in range(epochs)]
    found = Delivered(batches, made.order_digest(), made.content_digest())
    made.close()
    return found


@pytest.fixture(scope="module")
def reference() -> Delivered:
    """Two epochs, without workers."""
    return deliver(loader())


def indices(batches: Sequence[Any]) -> list[int]:
    return [index for _, y in batches for index in y.tolist()]


# ---------------------------------------------------------------------------------------------------------
# workers and start methods
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.usefixtures("no_workers_left")
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_any_number_of_workers_delivers_the_same(reference: Delivered, num_workers: int, persistent: bool) -> None:
    assert deliver(loader(num_workers, persistent_workers=persistent)) == reference


@pytest.mark.usefixtures("no_workers_left")
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_any_start_method_delivers_the_same(reference: Delivered, method: str) -> None:
    assert deliver(loader(2, multiprocessing_context=method, persistent_workers=True)) == reference


def origin() -> str:
    """How a worker is started by default."""
    mark, parent, _ = (int(value) for value in next(iter(Loader(Origin(), 1, seed=0, num_workers=1))))
    if parent != os.getpid():
        return "forkserver"
    return "fork" if mark else "spawn"


@pytest.mark.skipif(sys.platform != "linux", reason="fork is the default on Linux only")
def test_workers_are_forked_where_that_is_safe_and_otherwise_come_from_a_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(datasets, "mark", 1)
    # pytest-xdist's workers have no file, and count as notebooks
    monkeypatch.setattr(sys.modules["__main__"], "__file__", datasets.__file__, raising=False)
    if threading.active_count() == 1:  # another test of the session may have left a thread
        assert origin() == "fork"
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        assert origin() == "forkserver"
    finally:
        done.set()
        thread.join()


def test_a_start_method_that_the_user_has_set_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "mark", 1)
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)
    try:
        assert origin() == "spawn"
    finally:
        multiprocessing.set_start_method(before, force=True)


@pytest.mark.parametrize(("persistent", "processes"), [(True, 1), (False, 2)])
def test_persistent_workers_serve_every_epoch(persistent: bool, processes: int) -> None:
    settings: dict[str, Any] = {"num_workers": 1, "multiprocessing_context": "fork", "persistent_workers": persistent}
    made = Loader(Origin(), 1, seed=0, **settings)
    assert len({int(process) for _ in range(2) for _, _, process in made}) == processes
    made.close()


def test_prefetching_delivers_the_same(reference: Delivered) -> None:
    assert deliver(loader(2, prefetch_factor=5)) == reference


def test_an_epoch_holds_every_sample_once_in_the_order_of_the_seed(reference: Delivered) -> None:
    for epoch in (0, 1):
        assert indices(reference.batches[epoch]) == Order(37, 7, epoch, True).indices(0, 37).tolist()


def test_another_seed_gives_other_samples_and_other_random_numbers(reference: Delivered) -> None:
    other = deliver(loader(seed=8))
    assert other.order != reference.order
    first = {int(row[0]): row[1:] for X, _ in reference.batches[0] for row in X}
    assert not any(torch.equal(row[1:], first[int(row[0])]) for X, _ in other.batches[0] for row in X)


def test_collating_may_use_random_numbers_too() -> None:
    given = [list(loader(n, collate_fn=total)) for n in (0, 2)]
    assert same(*given)
    assert not torch.equal(given[0][0] % 1, given[0][1] % 1)


# ---------------------------------------------------------------------------------------------------------
# random numbers belong to a sample
# ---------------------------------------------------------------------------------------------------------


def draws(batches: Sequence[Any]) -> dict[int, list[list[float]]]:
    found: dict[int, list[list[float]]] = {}
    for X, y in batches:
        for row, index in zip(X.tolist(), y.tolist(), strict=True):
            found.setdefault(index, []).append(row[1:])
    return found


def test_a_sample_has_the_same_random_numbers_wherever_it_stands(reference: Delivered) -> None:
    alone = draws(loader(shuffle=False, batch_size=3))
    assert alone == draws(reference.batches[0])


def test_a_sample_has_other_random_numbers_in_each_epoch_and_from_each_source(reference: Delivered) -> None:
    first, second = (draws(batches) for batches in reference.batches)
    values = [value for epoch in (first, second) for rows in epoch.values() for row in rows for value in row]
    assert len(set(values)) == len(values) == 2 * 37 * 5


def test_random_numbers_belong_to_the_ID_and_not_to_its_index() -> None:
    forward, backward = draws(loader(shuffle=False)), draws(loader(shuffle=False, names=NAMES[::-1]))
    assert all(forward[i] == backward[36 - i] for i in range(37))


def test_an_ID_that_stands_several_times_has_random_numbers_of_its_own_each_time() -> None:
    found = draws(loader(names=["a", "b", "a", "a", "b"], shuffle=False))
    assert len({tuple(found[i][0]) for i in range(5)}) == 5
    assert draws(loader(names=["a", "c", "a"], shuffle=False))[2] == found[2]  # the second time
    assert draws(loader(2, names=["a", "b", "a", "a", "b"], shuffle=True)) == found


def test_outside_a_loader_random_numbers_follow_torchs_seed() -> None:
    torch.manual_seed(3)
    first = sample_rng().random()
    second = sample_rng().random()
    torch.manual_seed(3)
    assert sample_rng().random() == first != second


class Rarely(Numbers):
    """Some samples draw from one of the global generators, the others from none; each says how often it was loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.loads = [0] * self.size

    def __getitem__(self, index: int) -> Any:
        self.loads[index] += 1
        draw = {9: random.random, 20: np.random.rand, 21: lambda: torch.rand(()), 30: lambda: random.gauss(0, 1)}
        if index == 25 and random.random() < 2:
            raise ValueError("after a draw")
        return float(draw[index]()) if index in draw else 0.0


@pytest.mark.parametrize("order", [[9, 20, 21, 30], [0, 20, 1, 9, 2], [0, 1, 30, 2, 21, 9], [21, 3, 20]])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_samples_that_draw_now_and_then_have_the_same_numbers_as_if_all_did(order: list[int], num_workers: int) -> None:
    expected = []
    for index in order:
        with sample_seeds():
            name_sample(7, 0, str(order.index(index)))
            expected.append(Rarely()[index])
    data = Rarely()
    made = Loader(Subset(data, order), 2, seed=7, num_workers=num_workers)
    assert [value for batch in made for value in batch.tolist()] == expected
    assert sum(data.loads) <= len(order) + 1  # one more only for the first that drew


def test_an_error_after_a_draw_is_told_as_ever() -> None:
    for num_workers in (0, 1):
        with pytest.raises(SampleError, match="sample '1': Rarely.__getitem__ failed with ValueError: after a draw"):
            list(Loader(Subset(Rarely(), [0, 25]), 2, seed=7, num_workers=num_workers))


def test_collating_finds_the_generators_as_the_last_sample_left_them() -> None:
    def drawn(samples: list[Any]) -> Any:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    for last in (0, 21, 9):
        with sample_seeds():
            name_sample(7, 0, "1")
            Rarely()[last]
            expected = drawn([])
        assert list(Loader(Subset(Rarely(), [1, last]), 2, seed=7, collate_fn=drawn)) == [expected]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loading_leaves_the_global_random_numbers_as_they_were(num_workers: int) -> None:
    def states() -> tuple[bytes, Any, str]:
        return torch.get_rng_state().numpy().tobytes(), random.getstate(), str(np.random.get_state())

    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    before = states()
    made = loader(num_workers)
    made.start()
    for _ in made:
        assert states() == before
    list(made)
    iter(made)
    assert states() == before


# ---------------------------------------------------------------------------------------------------------
# position
# ---------------------------------------------------------------------------------------------------------


def after(batches: int, **settings: Any) -> dict[str, Any]:
    """The state after so many batches of a fresh loader, as a checkpoint would hold it."""
    made = loader(**settings)
    epochs, rest = divmod(batches, BATCHES)
    for _ in range(epochs):
        list(made)
    if rest:
        iterator = iter(made)
        for _ in range(rest):
            next(iterator)
    return json.loads(json.dumps(made.state_dict()))  # type: ignore[no-any-return]


def rest_of(reference: Delivered, batches: int) -> list[list[Any]]:
    """What follows `batches` in the reference; an epoch that is over is not begun again."""
    epoch, done = divmod(batches, BATCHES)
    return [reference.batches[epoch][done:], *reference.batches[epoch + 1 :]]


@pytest.mark.parametrize("batches", range(2 * BATCHES))
def test_a_restart_after_any_batch_delivers_the_rest_unchanged(reference: Delivered, batches: int) -> None:
    resumed = loader()
    resumed.load_state_dict(after(batches))
    rest = rest_of(reference, batches)
    assert deliver(resumed, len(rest)) == Delivered(rest, reference.order, reference.content)


@pytest.mark.parametrize(("batches", "before", "then"), [(3, 0, 2), (3, 2, 0), (7, 2, 1), (8, 2, 2), (13, 1, 2)])
def test_a_restart_may_change_the_number_of_workers(reference: Delivered, batches: int, before: int, then: int) -> None:
    resumed = loader(then)
    resumed.load_state_dict(after(batches, num_workers=before))
    rest = rest_of(reference, batches)
    assert deliver(resumed, len(rest)) == Delivered(rest, reference.order, reference.content)


@pytest.mark.parametrize("batch_size", [1, 4, 7, 16, 100])
@pytest.mark.parametrize("drop_last", [False, True])
def test_a_restart_may_change_the_batch_size(reference: Delivered, batch_size: int, drop_last: bool) -> None:
    resumed = loader(batch_size=batch_size, drop_last=drop_last)
    resumed.load_state_dict(after(3))
    whole = 37 - (37 - 15) % batch_size if drop_last else 37
    expected = Order(37, 7, 0, True).indices(15, whole).tolist()
    second = Order(37, 7, 1, True).indices(0, 37 - 37 % batch_size if drop_last else 37).tolist()
    if expected:
        assert indices(list(resumed)) == expected
    assert indices(list(resumed)) == second
    if not drop_last:
        assert resumed.order_digest() == reference.order


def test_a_second_restart_in_the_same_epoch_goes_on_too(reference: Delivered) -> None:
    first = loader()
    first.load_state_dict(after(2))
    iterator = iter(first)
    next(iterator), next(iterator)
    second = loader()
    second.load_state_dict(first.state_dict())
    assert deliver(second) == Delivered(rest_of(reference, 4), reference.order, reference.content)


def test_a_state_may_be_loaded_into_a_loader_that_is_in_use(reference: Delivered) -> None:
    state = after(11)
    for num_workers in (0, 2):
        made = loader(num_workers, persistent_workers=bool(num_workers))
        stale = iter(made)
        next(stale)
        made.load_state_dict(state)
        assert made.state_dict() == state
        assert deliver(made, 1) == Delivered(rest_of(reference, 11), reference.order, reference.content)


def test_the_state_of_a_fresh_loader_is_the_beginning(reference: Delivered) -> None:
    used = loader()
    list(used)
    used.load_state_dict(loader().state_dict())
    assert deliver(used) == reference


def test_an_info_names_an_earlier_position_of_the_epoch(reference: Delivered) -> None:
    made = loader()
    iterator = made.batches()
    info = next(iterator).info
    assert made.IDs(info) == [NAMES[i] for i in Order(37, 7, 0, True).indices(0, 5).tolist()]
    next(iterator)
    assert made.state_dict(info) == after(1)
    assert made.order_digest(info) != made.order_digest()
    resumed = loader()
    resumed.load_state_dict(made.state_dict(info))
    assert deliver(resumed) == Delivered(rest_of(reference, 1), reference.order, reference.content)
    list(made)
    with pytest.raises(UserError, match=r"this batch is of epoch 0, the loader is in epoch 1"):
        made.state_dict(info)


@pytest.mark.parametrize(
    ("other", "reported"),
    [({"seed": 8}, "seed=7, this loader has seed=8"), ({"shuffle": False}, "shuffle=True"), ({"names": ["a"]}, "=37")],
)
def test_a_state_of_another_order_is_refused(other: dict[str, Any], reported: str) -> None:
    with pytest.raises(UserError, match=reported):
        loader(**other).load_state_dict(after(1))


# ---------------------------------------------------------------------------------------------------------
# epochs
# ---------------------------------------------------------------------------------------------------------


def test_set_epoch_names_the_next_epoch(reference: Delivered) -> None:
    made = loader()
    made.set_epoch(1)
    assert same(list(made), reference.batches[1])
    made.set_epoch(0)
    assert same(list(made), reference.batches[0])
    assert same(list(made), reference.batches[1])  # and without it the next one follows


@pytest.mark.parametrize("epoch", ["a", 1.5, -1, None])
def test_set_epoch_refuses_what_is_no_epoch(epoch: Any) -> None:
    made, reported = loader(), f"epoch={epoch!r}: must be a whole number of at least 0"
    for set_epoch in (made.set_epoch, made.sampler.set_epoch):
        with pytest.raises(UserError, match=f"^Loader: set_epoch: {reported}$"):
            set_epoch(epoch)
    made.set_epoch(np.int64(2))
    assert json.dumps(made.state_dict())


@pytest.mark.parametrize("state", [None, {"epoch": 0, "position": 4}], ids=str)
def test_load_state_dict_refuses_what_is_no_state(state: Any) -> None:
    with pytest.raises(UserError, match=r"load_state_dict takes what state_dict\(\) returned; this is"):
        loader().load_state_dict(state)


def test_set_epoch_keeps_a_position_that_was_loaded_for_that_epoch(reference: Delivered) -> None:
    made = loader()
    made.load_state_dict(after(3))
    made.set_epoch(0)
    assert same(list(made), reference.batches[0][3:])
    made.load_state_dict(after(3))
    made.set_epoch(1)
    assert same(list(made), reference.batches[1])


def test_set_epoch_within_an_epoch_begins_it_anew(reference: Delivered) -> None:
    made = loader()
    next(iter(made))
    made.set_epoch(0)
    assert made.state_dict()["position"] == 0
    assert same(list(made), reference.batches[0])


@pytest.mark.usefixtures("no_workers_left")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_leaving_an_epoch_early_goes_on_to_the_next(reference: Delivered, num_workers: int) -> None:
    made = loader(num_workers, persistent_workers=bool(num_workers))
    for batch in made:
        assert same(batch, reference.batches[0][0])
        break
    assert same(list(made), reference.batches[1])
    assert made.order_digest() == _digest_of([5, 37])
    made.close()


def _digest_of(counts: list[int]) -> str:
    made = loader()
    for count in counts:
        iterator = iter(made)
        for _ in range(-(-count // BATCH)):
            next(iterator)
    return made.order_digest()


@pytest.mark.usefixtures("no_workers_left")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_starting_early_changes_nothing(reference: Delivered, num_workers: int) -> None:
    made = loader(num_workers)
    made.start()
    made.start()
    assert made.state_dict() == loader().state_dict()
    made.set_epoch(0)
    assert deliver(made) == reference


def test_starting_early_for_another_epoch_than_wanted_is_undone(reference: Delivered) -> None:
    made = loader()
    made.start()
    made.set_epoch(1)
    assert same(list(made), reference.batches[1])
    made.start()
    made.load_state_dict(after(3))
    assert same(list(made), reference.batches[0][3:])


@pytest.mark.usefixtures("no_workers_left")
def test_closing_ends_the_workers_and_loses_no_position(reference: Delivered) -> None:
    made = loader(2, persistent_workers=True)
    made.start()
    made.close()
    assert same(list(made), reference.batches[0])
    made.close()
    assert same(list(made), reference.batches[1])
    made.close()


def test_a_second_pass_ends_the_first_with_a_sentence() -> None:
    made = loader()
    first = iter(made)
    next(first)
    second = iter(made)
    with pytest.raises(UserError, match="this iterator of the loader is over.*make a second Loader"):
        next(first)
    assert len(list(second)) == BATCHES
    assert list(second) == []


@pytest.mark.usefixtures("no_workers_left")
def test_a_loader_that_is_dropped_takes_its_workers_with_it_without_the_cyclic_collector() -> None:
    gc.collect()
    gc.disable()
    try:
        made = loader(1, persistent_workers=True)
        list(made)
        gone = weakref.ref(made)
        del made
        assert gone() is None
    finally:
        gc.enable()


def test_a_dataset_that_has_grown_is_read_whole_in_the_next_epoch() -> None:
    data = Numbers(10)
    made = Loader(data, 4, True, seed=0)
    for size in (12, 15, 8):
        data.size = size
        assert sorted(indices(list(made))) == list(range(size))


# ---------------------------------------------------------------------------------------------------------
# ranks
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [37, 32, 35, 3])
@pytest.mark.parametrize("drop_last", [False, True])
def test_the_global_order_is_the_same_for_every_world_size(size: int, drop_last: bool) -> None:
    found = set()
    for world_size in (1, 2, 4):
        ranks = [
            Loader(Numbers(size), 8 // world_size, True, drop_last=drop_last, seed=1, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        by_start: dict[int, list[int]] = {}
        for rank in ranks:
            count = 0
            for batch in rank.batches():
                by_start.setdefault(batch.info.request.start, []).extend(batch.y.tolist())
                count += 1
            assert count == len(rank)
        together = tuple(index for start in sorted(by_start) for index in by_start[start])
        states = {json.dumps(rank.state_dict()) for rank in ranks}
        assert len(states) == 1  # every rank ends an epoch at the same position, with the same digest
        found.add((together, ranks[0].order_digest()))
        assert all(len(list(rank)) == len(rank) for rank in ranks)  # and goes on to the next
    assert len(found) == 1
    assert sorted(found.pop()[0]) == list(range(size)) or drop_last


def test_a_restart_may_change_the_world_size() -> None:
    expected = Order(37, 1, 0, True).indices(8, 37).tolist()
    first = Loader(Numbers(), 8, True, seed=1)
    next(iter(first))
    ranks = [Loader(Numbers(), 4, True, seed=1, rank=rank, world_size=2) for rank in (0, 1)]
    parts: list[list[list[int]]] = []
    for rank in ranks:
        rank.load_state_dict(first.state_dict())
        parts.append([y.tolist() for _, y in rank])
    # the last global batch holds five samples, two and three of them for the ranks
    assert [i for pair in zip(*parts, strict=True) for part in pair for i in part] == expected


# ---------------------------------------------------------------------------------------------------------
# DataLoader's own settings
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batch_size_none_delivers_samples_as_they_are(num_workers: int) -> None:
    made = loader(num_workers, batch_size=None, shuffle=False)
    samples = list(made)
    assert len(samples) == len(made) == 37
    assert samples[3][0].shape == (6,)
    assert samples[3][1] == 3
    assert draws([(X[None], torch.tensor([y])) for X, y in samples]) == draws(loader())


@pytest.mark.parametrize(("size", "drop_last", "count"), [(37, False, 8), (37, True, 7), (35, True, 7), (4, True, 0)])
def test_the_length_is_the_number_of_batches(size: int, drop_last: bool, count: int) -> None:
    made = loader(names=NAMES[:size], drop_last=drop_last)
    assert len(made) == len(list(made)) == count
    assert made.state_dict()["position"] == (size - size % BATCH if drop_last else size)


def test_without_shuffle_the_order_is_that_of_the_dataset() -> None:
    assert indices(list(loader(shuffle=False))) == list(range(37))


def test_IDs_that_do_not_match_the_length_are_not_used_as_the_IDs_of_samples() -> None:
    class Windows(Numbers):
        list_IDs = ("file a", "file b")  # several samples each

    made, plain = Loader(Windows(), 5, seed=0), Loader(Numbers(), 5, seed=0)
    assert same(list(made), list(plain))
    assert made.order_digest() == plain.order_digest()


def test_a_subset_is_a_dataset_like_any_other() -> None:
    made = Loader(Subset(Numbers(), range(10, 20)), 4, True, seed=0, num_workers=2, multiprocessing_context="fork")
    assert sorted(indices(list(made))) == list(range(10, 20))


def test_the_report_counts_what_was_delivered() -> None:
    made = loader(2, batch_size=3)
    list(made)
    report = made.report()
    assert (report.times.samples.sum(), report.epoch) == (37, 0)
    assert "37 samples in 13 batches" in str(report)
    assert report.verdict is not None
    assert f"waited {report.verdict.figures['wait_pct']:.1f} % of the time" in str(report)


def test_a_report_on_a_few_batches_tells_neither_a_rate_nor_a_verdict() -> None:
    made = loader(0)
    list(made)
    report = made.report()
    assert report.verdict is None
    assert re.fullmatch(
        r"epoch 0: 37 samples in 8 batches; too few steps for a rate or a verdict: 6 of 8 count, 10 are needed; "
        r"they took \S+ s",
        str(report),
    )


# ---------------------------------------------------------------------------------------------------------
# memory
# ---------------------------------------------------------------------------------------------------------


def test_spawned_workers_share_the_IDs_and_labels_instead_of_copying_them() -> None:
    names = [f"{i:08d}" for i in range(100_000)]
    data = TensorFiles(names, dict.fromkeys(names, 1), root="/nowhere")
    assert isinstance(data.list_IDs, IDs)
    views = data.list_IDs[99_999], encode(data.list_IDs, np.array([5]))
    samples = BatchFetcher(data, 0, data.list_IDs, torch.utils.data.default_collate, True)
    sizes = []
    for _ in range(3):  # a process each
        popen = Popen.__new__(Popen)  # one that is about to be started, as far as pickling is concerned
        popen._fds = []
        set_spawning_popen(popen)
        try:
            sizes.append(len(ForkingPickler.dumps(samples)))
        finally:
            set_spawning_popen(None)
    assert max(sizes) < 15_000
    assert (data.list_IDs[99_999], encode(data.list_IDs, np.array([5]))) == views
    assert data.list_IDs.text.is_shared()


def test_finding_IDs_that_stand_twice_needs_no_copy_of_the_IDs() -> None:
    names = IDs(f"{i:08d}" for i in range(50_000))
    assert BatchFetcher(Numbers(), 0, names, list, True).occurrence is None
    twice = BatchFetcher(Numbers(), 0, ["a", "b", "a"], list, True).occurrence
    assert twice is not None
    assert twice.tolist() == [0, 0, 1]
