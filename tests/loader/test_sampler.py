"""Libraries build another loader from the attributes of one: it is torch's DataLoader, or keeps the seed's order."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler, SequentialSampler

from feedrate.errors import UserError
from feedrate.loader import Loader, SeededLoader
from loader.datasets import Drawn, Numbers, total
from loader.test_loader import same

SETTINGS: dict[str, Any] = {"batch_size": 5, "shuffle": True, "seed": 3}


def rows(batches: Any) -> list[list[int]]:
    return [y.tolist() for _, y in batches]


def again(loader: DataLoader[Any], **changed: Any) -> Any:
    """Like libraries: passes to the constructor what is in vars() and differs from the default."""
    taken = {**inspect.signature(DataLoader.__init__).parameters, **inspect.signature(type(loader)).parameters}
    given = {k: v for k, v in vars(loader).items() if k in taken and v is not taken[k].default}
    return type(loader)(**{**given, **changed})


def by_batches(loader: DataLoader[Any], batch_sampler: Any) -> Any:
    settled = {"batch_size": 1, "sampler": None, "drop_last": False, "shuffle": False}
    return again(loader, batch_sampler=batch_sampler, **settled)


# ---------------------------------------------------------------------------------------------------------
# without a seed
# ---------------------------------------------------------------------------------------------------------


def test_without_a_seed_the_attributes_are_those_of_dataloader() -> None:
    made, plain = Loader(Numbers(), 5, shuffle=True), DataLoader(Numbers(), 5, shuffle=True)
    assert list(vars(made)) == list(vars(plain))
    for name in ("state_dict", "load_state_dict", "report", "order_digest"):
        assert not hasattr(made, name)
    assert made.seed is None
    with pytest.raises(AttributeError, match="'Loader' object has no attribute 'bath_size'"):
        _ = made.bath_size


def test_without_a_seed_a_loader_built_from_attributes_is_one_again() -> None:
    sampler = RandomSampler(range(37), generator=torch.Generator().manual_seed(1))
    made = again(Loader(Numbers(), 5, sampler=sampler), sampler=sampler, shuffle=False, batch_sampler=None)
    assert type(made) is Loader
    assert sorted(i for row in rows(made) for i in row) == list(range(37))


def test_with_and_without_a_seed_it_is_a_loader_and_may_be_annotated() -> None:
    annotation = Loader[int]
    for seed in (None, 0):
        made = annotation(Numbers(), 5, seed=seed)
        assert isinstance(made, Loader)
        assert isinstance(made, DataLoader)
        assert isinstance(made, SeededLoader) == (seed is not None)
        assert len(list(made)) == 8
    assert list(inspect.signature(Loader).parameters)[:3] == ["dataset", "args", "seed"]


def test_a_class_of_ones_own_extends_the_one_or_the_other() -> None:
    class Plain(Loader[Any]):
        pass

    class Seeded(SeededLoader[Any]):
        pass

    assert len(list(Plain(Numbers(), 5))) == 8
    assert rows(Seeded(Numbers(), **SETTINGS)) == rows(Loader(Numbers(), **SETTINGS))
    with pytest.raises(UserError, match=r"Plain: seed is for feedrate.loader.SeededLoader"):
        Plain(Numbers(), seed=0)
    with pytest.raises(UserError, match="Seeded: needs a seed; pass seed=0"):
        Seeded(Numbers())


# ---------------------------------------------------------------------------------------------------------
# with a seed: the samplers give the order
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
def test_sampler_and_batch_sampler_give_the_order_that_is_delivered(shuffle: bool, drop_last: bool) -> None:
    settings = {**SETTINGS, "shuffle": shuffle, "drop_last": drop_last}
    made, other = Loader(Numbers(), **settings), Loader(Numbers(), **settings)
    plain = DataLoader(Numbers(), batch_sampler=other.batch_sampler)
    for epoch in (0, 1, 2):
        assert list(made.batch_sampler) == rows(made)
        assert rows(plain) == rows(Loader(Numbers(), **settings) if epoch == 0 else set_to(epoch, settings))
    assert len(plain) == len(made)
    assert len(made.sampler) == 37
    assert isinstance(made.sampler, SequentialSampler) == (not shuffle)


def set_to(epoch: int, settings: dict[str, Any]) -> Loader[Any]:
    made = Loader(Numbers(), **settings)
    made.set_epoch(epoch)
    return made


def test_looking_at_the_sampler_changes_nothing() -> None:
    made = Loader(Numbers(), **SETTINGS)
    first, second = list(made.sampler), list(made.sampler)
    assert first != second
    assert [i for row in rows(made) for i in row] == first
    assert [i for row in rows(made) for i in row] == second


def test_the_sampler_follows_set_epoch_and_the_position() -> None:
    made, other = Loader(Numbers(), **SETTINGS), Loader(Numbers(), **SETTINGS)
    other.set_epoch(4)
    whole = list(other.batch_sampler)
    iterator = iter(other)
    assert [next(iterator)[1].tolist() for _ in range(3)] == whole[:3]
    made.load_state_dict(other.state_dict())
    assert list(made.batch_sampler) == whole[3:]
    assert rows(made) == whole[3:]
    made.set_epoch(9)
    expected = list(made.sampler)
    assert [i for row in rows(made) for i in row] == expected


@pytest.mark.parametrize("size", [37, 32, 7, 3])
@pytest.mark.parametrize("drop_last", [True, False])
def test_the_sampler_of_a_rank_gives_its_part(size: int, drop_last: bool) -> None:
    for rank in (0, 1):
        made = Loader(Numbers(size), 4, True, seed=0, rank=rank, world_size=2, drop_last=drop_last)
        order = list(made.sampler)
        assert order == [i for row in rows(made) for i in row]
        assert len(made.sampler) == len(order)


def test_a_library_may_name_the_epoch_by_the_sampler() -> None:
    expected = [rows(set_to(epoch, SETTINGS)) for epoch in range(4)]
    made = Loader(Numbers(), **SETTINGS)
    for epoch in (0, 0, 3, 1):
        made.sampler.set_epoch(epoch)
        assert rows(made) == expected[epoch]
    made.sampler.set_epoch(0)
    started = iter(made)
    made.sampler.set_epoch(2)  # after iter(), and before the first batch
    assert rows(started) == expected[2]
    assert rows(made) == expected[3]


def test_a_library_that_counts_from_0_does_not_undo_a_resume() -> None:
    """Fabric and accelerate call `set_epoch(0)` before the first epoch of each process."""
    expected = [rows(set_to(epoch, SETTINGS)) for epoch in range(7)]
    first = set_to(3, SETTINGS)
    next(iter(first))
    for other in ("state", "epoch"):
        made = Loader(Numbers(), **SETTINGS)
        if other == "state":
            made.load_state_dict(first.state_dict())
        else:
            made.set_epoch(3)
        found = []
        for count in range(4):
            made.sampler.set_epoch(count)
            found.append(rows(made))
        assert found == [expected[3][1 if other == "state" else 0 :], *expected[4:]]


def test_an_epoch_of_which_no_batch_was_asked_for_comes_again() -> None:
    made = Loader(Numbers(), **SETTINGS)
    iter(made)
    first = iter(made)
    assert made.state_dict()["epoch"] == 0
    expected = rows(Loader(Numbers(), **SETTINGS))
    assert rows(made) == expected
    with pytest.raises(UserError, match="this iterator of the loader is over"):
        next(first)
    one, other = iter(made), iter(made)
    next(other)
    with pytest.raises(UserError, match="this iterator of the loader is over"):
        next(one)


# ---------------------------------------------------------------------------------------------------------
# with a seed: rebuilt
# ---------------------------------------------------------------------------------------------------------


class Wrapped:
    """As Lightning's predict wraps the batch sampler, to see the indices."""

    def __init__(self, batch_sampler: Any) -> None:
        self.seen: list[list[int]] = []
        self._batch_sampler = batch_sampler

    def __len__(self) -> int:
        return len(self._batch_sampler)

    def __iter__(self) -> Iterator[list[int]]:
        self.seen, self._iterator = [], iter(self._batch_sampler)
        return self

    def __next__(self) -> list[int]:
        self.seen.append(next(self._iterator))
        return self.seen[-1]


class Later(BatchSampler):
    """As ignite and accelerate leave out the first batches."""

    def __init__(self, batch_sampler: Any, skip: int) -> None:
        self.batch_sampler, self.skip = batch_sampler, skip

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[list[int]]:
        skip, self.skip = self.skip, 0
        return iter(list(self.batch_sampler)[skip:])


@pytest.mark.parametrize("engine", ["inline", "thread", "process"])
def test_a_rebuilt_loader_keeps_order_random_numbers_digest_and_position(engine: str) -> None:
    workers = {} if engine == "inline" else {"num_workers": 1, "engine": engine, "persistent_workers": True}
    settings = {**SETTINGS, **workers, "content_digest": True}
    reference = Loader(Drawn(), **{**SETTINGS, "content_digest": True})
    made = Loader(Drawn(), **settings)
    expected = [list(reference) for _ in range(4)]
    assert same(list(made), expected[0])
    sampler = again(made, sampler=made.sampler, batch_sampler=None, shuffle=False)
    made.close()
    assert same(list(sampler), expected[1])
    sampler.close()
    wrapped = Wrapped(made.batch_sampler)
    batches = by_batches(made, wrapped)
    found = []
    for batch in batches:
        found.append(batch)
        assert wrapped.seen[len(found) - 1] == batch[1].tolist()  # known by the time that the batch is there
    assert same(found, expected[2])
    batches.close()
    later = by_batches(made, Later(made.batch_sampler, 3))
    assert same(list(later), expected[3][3:])
    later.close()
    for loader in (made, sampler, batches, later):
        assert loader.order_digest() == reference.order_digest()
        assert loader.state_dict()["epoch"] == 3
    assert later.batch_size is None
    assert (len(later), later.end) == (8, 37)
    assert batches.content_digest() != Loader(Drawn(), **settings).content_digest()


def test_a_rebuilt_loader_may_keep_what_drop_last_left_out() -> None:
    made = Loader(Numbers(), drop_last=True, **SETTINGS)
    every = by_batches(made, Wrapped(BatchSampler(made.sampler, 5, False)))
    assert len(rows(every)) == 8
    assert sorted(i for row in rows(every) for i in row) == list(range(37))


def test_a_sequential_sampler_turns_shuffling_off() -> None:
    data = Numbers()
    made = Loader(data, **SETTINGS)
    plain = again(made, sampler=SequentialSampler(data), batch_sampler=None, shuffle=False)
    assert [i for row in rows(plain) for i in row] == list(range(37))
    assert type(plain) is SeededLoader
    with pytest.raises(ValueError, match="sampler option is mutually exclusive with shuffle"):
        again(made, sampler=SequentialSampler(data), batch_sampler=None, shuffle=True)
    with pytest.raises(UserError, match=r"batch_sampler \(SequentialSampler\) cannot be used"):
        Loader(data, batch_sampler=SequentialSampler(data), seed=0)


class Reversed(BatchSampler):
    def __init__(self, batch_sampler: Any) -> None:
        self.batch_sampler = batch_sampler

    def __iter__(self) -> Iterator[list[int]]:
        return iter([batch[::-1] for batch in self.batch_sampler])


class Shorter(Reversed):
    def __iter__(self) -> Iterator[list[int]]:
        return iter(list(self.batch_sampler)[:2])


def test_a_rebuilt_loader_with_another_order_is_refused_in_one_sentence() -> None:
    data = Numbers()
    made = Loader(data, **SETTINGS)
    for kind in (Reversed, Shorter):
        with pytest.raises(UserError, match=f"^Loader: {kind.__name__} gives other batches than the seed's order; .*$"):
            list(by_batches(made, kind(made.batch_sampler)))
    distributed = DistributedSampler(data, num_replicas=2, rank=0)
    with pytest.raises(
        UserError, match="^Loader: .*pass rank and world_size to Loader, and use_distributed_sampler=.*$"
    ):
        again(made, sampler=distributed, batch_sampler=None, shuffle=False)
    for other in ({"dataset": Numbers()}, {"seed": 4}):
        with pytest.raises(UserError, match="keeps its order only with the same seed and dataset"):
            again(made, batch_sampler=None, **other)


# ---------------------------------------------------------------------------------------------------------
# copies, and what is set later
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_workers_left", "no_threads_left")
@pytest.mark.parametrize("engine", ["inline", "thread", "process"])
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_used_loader_may_be_copied(engine: str, how: str) -> None:
    workers = {} if engine == "inline" else {"num_workers": 1, "engine": engine, "persistent_workers": True}
    if engine == "process":
        workers["multiprocessing_context"] = "fork"
    made = Loader(Drawn(), **SETTINGS, **workers)
    list(made)
    iterator = iter(made)
    next(iterator)
    other = copy.deepcopy(made) if how == "deepcopy" else pickle.loads(pickle.dumps(made))
    assert other.state_dict() == made.state_dict()
    assert other.worker_ids() == []
    assert [len(list(other)), len(list(iterator))] == [8, 7]  # neither is disturbed by the other
    expected = Loader(Drawn(), **SETTINGS)
    expected.set_epoch(2)
    assert same(list(made), list(expected))
    made.close()
    other.close()


def doubled(samples: list[Any]) -> Any:
    return [2 * y for _, y in samples]


@pytest.mark.usefixtures("no_workers_left")
@pytest.mark.parametrize("used", [False, True])
def test_what_is_set_after_construction_is_honoured(used: bool) -> None:
    made = Loader(Numbers(), **SETTINGS)
    expected = [rows(set_to(epoch, SETTINGS)) for epoch in range(6)]
    if used:
        list(made)
    made.collate_fn = doubled
    assert list(made) == [[2 * i for i in row] for row in expected[used]]
    made.num_workers, made.prefetch_factor = 1, 1
    assert list(made) == [[2 * i for i in row] for row in expected[used + 1]]
    assert (made.engine, len(made.worker_ids())) == ("process", 0)
    made.num_workers, made.prefetch_factor = 0, None
    made.collate_fn = torch.utils.data.default_collate
    assert rows(made) == expected[used + 2]
    assert made.engine == "inline"
    made.start()
    made.collate_fn = total
    assert isinstance(next(iter(made)), torch.Tensor)


@pytest.mark.usefixtures("no_workers_left", "no_threads_left")
@pytest.mark.parametrize("engine", ["thread", "process"])
def test_workers_that_live_on_take_up_what_is_set_between_epochs(engine: str) -> None:
    made = Loader(Drawn(), **SETTINGS, num_workers=1, engine=engine, persistent_workers=True)
    assert len(list(made)) == 8
    assert len(made.worker_ids()) == 1
    made.num_workers, made.collate_fn = 2, len
    assert list(made) == [5] * 7 + [2]
    assert len(made.worker_ids()) == 2
    assert made.engine == engine
    made.close()


def test_what_a_seed_leaves_no_room_for_is_refused_when_it_is_set_later() -> None:
    settings = ("generator", torch.Generator()), ("in_order", False), ("seed", 5), ("shuffle", False), ("timeout", 1e30)
    for name, value in settings:
        made = Loader(Numbers(), **SETTINGS, num_workers=1)
        setattr(made, name, value)
        with pytest.raises(UserError, match=f"{name}"):
            iter(made)
    made = Loader(Numbers(), **SETTINGS)
    made.shuffle = True  # as it is
    assert len(rows(made)) == 8


@pytest.mark.usefixtures("no_workers_left", "no_threads_left")
@pytest.mark.parametrize("engine", ["inline", "thread", "process"])
def test_the_length_follows_a_dataset_that_has_grown(engine: str) -> None:
    workers = {} if engine == "inline" else {"num_workers": 1, "engine": engine, "persistent_workers": True}
    data = Grown([f"s{i}" for i in range(10)])
    made = Loader(data, 4, True, seed=0, **workers)
    for size in (10, 13, 21):
        data.list_IDs += [f"s{i}" for i in range(len(data), size)]
        assert len(made) == len(list(made.batch_sampler)) == -(-size // 4)
        infos = [batch.info for batch in made.batches()]
        assert sorted(i for info in infos for i in info.request.indices.tolist()) == list(range(size))
        assert made.IDs(infos[-1])[0] == f"s{infos[-1].request.indices[0]}"
    made.close()


class Grown(Numbers):
    """Its samples are known by a list that may grow."""

    thread_safe = True

    def __init__(self, list_IDs: list[str]) -> None:
        self.list_IDs = list_IDs

    def __len__(self) -> int:
        return len(self.list_IDs)

    def __getitem__(self, index: int) -> Any:
        assert self.list_IDs[index] == f"s{index}"
        return super().__getitem__(index)


# ---------------------------------------------------------------------------------------------------------
# after an epoch's last batch
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("early", [True, False])
def test_an_epoch_that_is_over_has_an_empty_rest(inside: bool, early: bool) -> None:
    made = Loader(Numbers(), **SETTINGS)
    for number, _ in enumerate(made):
        if inside and number == 7:
            state = made.state_dict()
    if not inside:
        state = made.state_dict()
    second = rows(made)
    resumed = Loader(Numbers(), **SETTINGS)
    resumed.load_state_dict(state)
    if early:
        resumed.start()
    resumed.set_epoch(0)
    resumed.set_epoch(0)
    assert rows(resumed) == []
    assert rows(resumed) == second
    assert resumed.order_digest() == made.order_digest()


@pytest.mark.parametrize("names", [True, False])
@pytest.mark.parametrize("stop", range(20))
def test_a_loop_that_saves_epoch_and_state_after_any_batch_goes_on_where_it_was(stop: int, names: bool) -> None:
    """Two epochs of ten batches, stopped after each of the twenty."""

    def train(epoch: int, state: dict[str, Any] | None, stop: int) -> tuple[list[list[int]], Any]:
        made, found, saved = Loader(Numbers(40), 4, True, seed=0), [], None
        if state is not None:
            made.load_state_dict(state)
        for now in range(epoch, 2):
            if names:
                made.set_epoch(now)
            for _, y in made:
                found.append(y.tolist())
                saved = now, made.state_dict()
                if len(found) == stop:
                    return found, saved
        return found, saved

    whole, _ = train(0, None, 99)
    before, saved = train(0, None, stop + 1)
    after, _ = train(*saved, 99)
    assert before + after == whole
