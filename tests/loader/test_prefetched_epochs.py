"""Batches of the next epoch are loaded before this one is over, without a change in what is delivered."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from feedrate.errors import SampleError
from feedrate.loader import Loader
from loader.datasets import BAD, Drawn, Recorded
from loader.test_loader import same

pytestmark = pytest.mark.usefixtures("no_workers_left", "no_threads_left")
ENGINES = ("thread", "process")
AHEAD = {"thread": 4, "process": 5}  # batches of two workers, two each, and one that is taken over from a process


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def loader(data: Any, engine: str, **settings: Any) -> Loader:
    settings = {"batch_size": 4, "seed": 0, "num_workers": 2, "persistent_workers": True, **settings}
    return Loader(data, engine=engine, multiprocessing_context="fork" if engine == "process" else None, **settings)


def wait_for(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def numbers(batches: Any) -> list[int]:
    return [i for batch in batches for i in batch.tolist()]


def test_the_first_batches_of_the_next_epoch_are_ready_before_it_is_asked_for(engine: str, tmp_path: Path) -> None:
    data = Recorded(30, tmp_path / "record")  # 8 batches
    made = loader(data, engine, shuffle=True)
    first = numbers(made)
    wait_for(lambda: len(data.requested()) == 30 + AHEAD[engine] * 4)
    assert made.state_dict()["epoch"] == 0
    assert made.state_dict()["position"] == 30
    before = Counter(data.requested())
    iterator = iter(made)
    head = next(iterator).tolist()
    assert sorted(first) == list(range(30))
    assert {before[index] for index in head} == {2}  # it was served from what was there
    assert sorted(head + numbers(iterator)) == list(range(30))
    wait_for(lambda: len(data.requested()) == 60 + AHEAD[engine] * 4)  # nothing was loaded a second time
    made.close()


def test_after_the_last_epoch_nothing_is_made_ahead(engine: str, tmp_path: Path) -> None:
    data = Recorded(30, tmp_path / "record")
    made = loader(data, engine)
    for epoch in range(3):
        made.set_epoch(epoch, then=epoch + 1 if epoch < 2 else None)
        assert numbers(made) == list(range(30))
    made.close()
    assert len(data.requested()) == 90


def test_a_loader_may_be_told_that_the_same_epoch_comes_again(engine: str, tmp_path: Path) -> None:
    data = Recorded(10, tmp_path / "record")  # 3 batches, fewer than are prefetched
    made = loader(data, engine)
    for times in (0, 0, None):
        made.set_epoch(0, then=times)
        assert numbers(made) == list(range(10))
        assert made.state_dict()["epoch"] == 0
    made.close()
    assert len(data.requested()) <= 30 + AHEAD[engine] * 4
    drawn = loader(Drawn(), engine, shuffle=True)
    found = []
    for _ in range(3):
        drawn.set_epoch(0, then=0)
        found.append(list(drawn))
    assert same(found[0], found[1])
    assert same(found[0], found[2])
    assert same(found[0], list(Loader(Drawn(), 4, True, seed=0)))
    drawn.close()


@pytest.mark.parametrize("size", [1, 4, 7, 37])
@pytest.mark.parametrize("drop_last", [False, True])
def test_many_epochs_of_little_data_are_what_they_are_without_workers(engine: str, size: int, drop_last: bool) -> None:
    settings: dict[str, Any] = {"shuffle": True, "drop_last": drop_last, "content_digest": True}
    made, plain = loader(Drawn(size=size), engine, **settings), Loader(Drawn(size=size), 4, seed=0, **settings)
    for _ in range(6):
        assert same(list(made), list(plain))
        assert made.state_dict() == plain.state_dict()
    assert (made.order_digest(), made.content_digest()) == (plain.order_digest(), plain.content_digest())
    made.close()


def test_what_was_made_ahead_is_thrown_away_where_something_else_is_wanted(engine: str) -> None:
    plain = Loader(Drawn(), 4, True, seed=0)
    epochs = [list(plain) for _ in range(8)]
    state = Loader(Drawn(), 4, True, seed=0).state_dict()
    made = loader(Drawn(), engine, shuffle=True)
    assert same(list(made), epochs[0])
    made.set_epoch(5)
    assert same(list(made), epochs[5])
    assert same(list(made), epochs[6])
    made.load_state_dict(state)
    assert same(list(made), epochs[0])
    assert same(next(iter(made)), epochs[1][0])  # and leaves it there
    assert same(list(made), epochs[2])
    next(iter(made))
    made.set_epoch(3)
    assert same(list(made), epochs[3])
    made.close()
    assert same(list(made), epochs[4])
    made.close()


def test_an_error_made_ahead_is_raised_when_its_batch_is_asked_for(engine: str, tmp_path: Path) -> None:
    data = Recorded(30, tmp_path / "record")
    made = loader(data, engine)
    iterator = iter(made)
    while BAD not in next(iterator).tolist():
        pass
    data.fails.touch()
    assert numbers(iterator)[-1] == 29
    wait_for(lambda: data.requested().count(BAD) == 2)  # it has failed by now
    batches: list[Any] = []
    with pytest.raises(SampleError, match=f"sample '{BAD}': Recorded.__getitem__ failed with ValueError: not any more"):
        batches.extend(made)
    assert numbers(batches) == list(range(BAD // 4 * 4))
    assert made.state_dict() | {"digest": 0} == {**made.state_dict(), "epoch": 1, "position": 8, "digest": 0}
    made.close()


def test_a_dataset_that_has_grown_is_gone_through_whole() -> None:
    for engine in ENGINES:
        data = Drawn()
        made = loader(data, engine)
        assert len(list(made)) == 10
        data.size = 45  # after batches of the next epoch were prefetched
        assert [i for _, y in made for i in y.tolist()] == list(range(45))
        made.close()


def test_workers_that_do_not_persist_make_nothing_ahead(engine: str, tmp_path: Path) -> None:
    data = Recorded(30, tmp_path / "record")
    made = loader(data, engine, persistent_workers=False)
    for epoch in (1, 2):
        assert len(numbers(made)) == 30
        made.close()
        assert len(data.requested()) == 30 * epoch


def test_starting_early_goes_on_into_the_next_epoch(engine: str, tmp_path: Path) -> None:
    data = Recorded(8, tmp_path / "record")  # 2 batches
    made = loader(data, engine)
    made.start()
    wait_for(lambda: len(data.requested()) >= 4 * 4)
    assert made.state_dict()["position"] == 0
    made.set_epoch(0, then=1)
    assert numbers(made) == list(range(8))
    made.set_epoch(1, then=None)
    assert numbers(made) == list(range(8))
    made.close()
    assert len(data.requested()) <= 16 + (AHEAD[engine] + 1) * 4  # a thread's loader has looked at one batch before
