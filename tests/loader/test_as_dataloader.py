"""Without a seed `Loader` is torch's DataLoader, results and errors alike; with one, what it cannot keep is refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_convert,
)

from feedrate.errors import UserError
from feedrate.loader import Loader
from loader.datasets import BAD, Faulty, Formed, Numbers, Point, Stream, Told, fail_to_start, tell, total
from loader.test_loader import same

Settings = dict[str, Any]
FORK = {"num_workers": 2, "multiprocessing_context": "fork"}


def both(data: Dataset[Any], settings: Callable[[], Settings], epochs: int = 2) -> tuple[list[Any], list[Any]]:
    """What DataLoader and Loader deliver; samplers keep state, so each gets its own settings."""
    found = []
    for kind in (DataLoader, Loader):
        torch.manual_seed(5)
        made = kind(data, **settings())
        found.append([list(made) for _ in range(epochs)])
    return found[0], found[1]


def error(make: Callable[[], Any]) -> tuple[type[BaseException], str]:
    """Type and first line of the error that a loader raises while it is built or read."""
    try:
        list(make())
    except Exception as raised:
        # torch's frames hold the exception and the workers in a circle, whose collection would take seconds
        raised.__traceback__ = None
        return type(raised), str(raised).partition("\n")[0]
    pytest.fail("no error")


def both_errors(data: Dataset[Any], settings: Callable[[], Settings]) -> list[tuple[type[BaseException], str]]:
    """The errors of DataLoader and Loader."""
    return [error(lambda kind=kind: kind(data, **settings())) for kind in (DataLoader, Loader)]


# ---------------------------------------------------------------------------------------------------------
# without a seed: what DataLoader's documentation describes
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        dict,
        lambda: {"batch_size": 5},
        lambda: {"batch_size": 5, "drop_last": True},
        lambda: {"batch_size": 5, "shuffle": True},
        lambda: {"batch_size": 5, "shuffle": True, "generator": torch.Generator().manual_seed(1)},
        lambda: {"batch_size": None},
        lambda: {"batch_size": None, "shuffle": True, "collate_fn": default_convert},
        lambda: {"batch_size": 5, "sampler": SequentialSampler(range(37))},
        lambda: {"batch_size": 5, "sampler": RandomSampler(range(37), replacement=True, num_samples=50)},
        lambda: {"batch_size": 5, "sampler": RandomSampler(range(37), generator=torch.Generator().manual_seed(2))},
        lambda: {"batch_size": 5, "sampler": WeightedRandomSampler(torch.arange(37.0), 30)},
        lambda: {"batch_size": 5, "sampler": SubsetRandomSampler(range(10, 20))},
        lambda: {"batch_size": 2, "sampler": [3, 1, 4, 1, 5]},
        lambda: {"batch_sampler": BatchSampler(RandomSampler(range(37)), 7, drop_last=True)},
        lambda: {"batch_sampler": [[0, 1], [2], [3, 4, 5]]},
        lambda: {"batch_size": 5, "collate_fn": total},
        lambda: {"batch_size": 5, "collate_fn": list},
        lambda: {"batch_size": 5, "pin_memory": False, "timeout": 0, "in_order": True},
        lambda: {"batch_size": 5, "shuffle": True, **FORK},
        lambda: {"batch_size": 5, "shuffle": True, "persistent_workers": True, "prefetch_factor": 1, **FORK},
        lambda: {"sampler": [3, 1, 4, 1, 5], "batch_size": None, "timeout": 20, **FORK},
    ],
    ids=lambda settings: ",".join(
        sorted(f"{k}={v}" if isinstance(v, (int, type(None))) else k for k, v in settings().items())
    ),
)
def test_without_a_seed_samplers_batches_and_workers_are_those_of_dataloader(settings: Callable[[], Settings]) -> None:
    expected, found = both(Numbers(), settings)
    assert same(found, expected)
    assert len(Loader(Numbers(), **settings())) == len(DataLoader(Numbers(), **settings()))


def test_without_a_seed_positional_arguments_are_those_of_dataloader() -> None:
    assert list(inspect.signature(Loader).parameters)[:1] == ["dataset"]
    arguments = (5, False, None, None, 0, total, False, True)
    assert len(list(Loader(Numbers(), *arguments))) == len(list(DataLoader(Numbers(), *arguments))) == 7
    assert isinstance(Loader(Numbers()), DataLoader)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(
    "form",
    ["tensor", "number", "float", "text", "numpy", "numpy number", "dict", "tuple", "list", "namedtuple"],
)
def test_samples_of_every_form_collate_as_dataloader_collates_them(form: str, num_workers: int) -> None:
    settings = {"batch_size": 3, "num_workers": num_workers, "multiprocessing_context": "fork" if num_workers else None}
    expected, found = both(Formed(form), lambda: settings, epochs=1)
    seeded = list(Loader(Formed(form), seed=0, **settings))
    for delivered in (found[0], seeded):
        assert type(delivered[0]) is type(expected[0][0])
        assert str(delivered) == str(expected[0])
    if form == "namedtuple":
        assert isinstance(seeded[0], Point)


@pytest.mark.parametrize(
    "settings",
    [
        lambda: {"batch_size": 3},
        lambda: {"batch_size": None},
        lambda: {"batch_size": 3, "drop_last": True, **FORK},
        lambda: {"batch_size": None, "persistent_workers": True, **FORK},
    ],
)
def test_without_a_seed_iterable_datasets_are_read_as_dataloader_reads_them(settings: Callable[[], Settings]) -> None:
    expected, found = both(Stream(), settings)
    assert same(found, expected)
    if "drop_last" not in settings():
        flat = [int(i) for batch in found[0] for i in (batch if isinstance(batch, torch.Tensor) else [batch])]
        assert sorted(flat) == list(range(20))  # each worker gave its own share


@pytest.mark.parametrize("seed", [None, 0])
def test_worker_init_fn_reaches_the_workers_own_copy_of_the_dataset(seed: int | None) -> None:
    made = Loader(Told(), 1, worker_init_fn=tell, seed=seed, **FORK)
    assert {(int(reported), int(worker)) for reported, worker in made} == {(100, 0), (101, 1)}


@pytest.mark.usefixtures("no_workers_left")
@pytest.mark.parametrize("seed", [None, 0])
def test_a_worker_init_fn_that_fails_raises_its_own_kind_of_error(seed: int | None) -> None:
    made = Loader(Told(), 1, worker_init_fn=fail_to_start, seed=seed, **FORK)
    kind, reported = error(lambda: made)
    assert kind is OSError
    assert reported == "Caught OSError in DataLoader worker process 0."


@pytest.mark.parametrize(
    "settings",
    [
        lambda: {"num_workers": -1},
        lambda: {"timeout": -1},
        lambda: {"timeout": 1},
        lambda: {"batch_size": 0},
        lambda: {"batch_size": 2.5},
        lambda: {"prefetch_factor": 2},
        lambda: {"persistent_workers": True},
        lambda: {"multiprocessing_context": "fork"},
        lambda: {"multiprocessing_context": "thread", "num_workers": 1},
        lambda: {"sampler": range(3), "shuffle": True},
        lambda: {"batch_sampler": [[0]], "batch_size": 2},
        lambda: {"batch_size": None, "drop_last": True},
        lambda: {"collate_fn": "no function"},
        lambda: {"num_wokers": 1},
    ],
    ids=lambda settings: ",".join(settings()),
)
def test_without_a_seed_mistakes_end_as_with_dataloader(settings: Callable[[], Settings]) -> None:
    expected, found = both_errors(Numbers(), settings)
    assert found == expected


@pytest.mark.parametrize("fault", ["value", "key", "two arguments", "shape", "object"])
@pytest.mark.parametrize("workers", [{}, FORK])
def test_without_a_seed_errors_in_samples_end_as_with_dataloader(fault: str, workers: Settings) -> None:
    expected, found = both_errors(Faulty(fault), lambda: {"batch_size": 4, **workers})
    assert found == expected


def test_without_a_seed_a_sample_that_hangs_ends_in_dataloaders_timeout() -> None:
    settings = {"sampler": [BAD], "timeout": 0.3, "num_workers": 1, "multiprocessing_context": "fork"}
    expected, found = both_errors(Faulty("hang"), lambda: settings)
    assert found == expected == (RuntimeError, "DataLoader timed out after 0.3 seconds")


def test_without_a_seed_iterable_datasets_refuse_what_dataloader_refuses() -> None:
    for settings in ({"sampler": range(3)}, {"shuffle": True}, {"batch_sampler": [[0]]}):
        expected, found = both_errors(Stream(), lambda settings=settings: settings)
        assert found[0] is ValueError
        assert found == expected
    with pytest.raises(TypeError, match="has no len"):
        len(Loader(Stream()))


def test_without_a_seed_what_needs_one_says_so() -> None:
    made = Loader(Numbers())
    for name in ("state_dict", "load_state_dict", "order_digest", "content_digest", "report"):
        assert not hasattr(made, name)
    with pytest.raises(UserError, match="content_digest, rank and world_size need a seed"):
        Loader(Numbers(), content_digest=True)
    with pytest.raises(UserError, match="need a seed"):
        Loader(Numbers(), rank=1, world_size=2)
    made.set_epoch(3), made.start(), made.close()  # harmless, so that one program serves both


# ---------------------------------------------------------------------------------------------------------
# with a seed
# ---------------------------------------------------------------------------------------------------------


class Endless(Dataset[int]):
    def __getitem__(self, index: int) -> int:
        return index


@pytest.mark.parametrize(
    ("data", "settings", "reported"),
    [
        (Numbers(), {"generator": torch.Generator()}, "generator"),
        (Numbers(), {"sampler": SequentialSampler(range(37))}, "sampler"),
        (Numbers(), {"batch_sampler": [[0, 1]]}, "batch_sampler"),
        (Numbers(), {"in_order": False}, "in_order=False"),
        (Numbers(), {"rank": 2, "world_size": 2}, "rank=2 must be at least 0 and below world_size=2"),
        (Stream(), {}, "map-style datasets with a __len__, not Stream"),
        (Endless(), {}, "map-style datasets with a __len__, not Endless"),
    ],
    ids=["generator", "sampler", "batch_sampler", "in_order", "rank", "iterable", "no length"],
)
def test_with_a_seed_what_it_cannot_keep_is_refused_in_one_sentence(
    data: Dataset[Any], settings: Settings, reported: str
) -> None:
    with pytest.raises(UserError, match=reported) as raised:
        Loader(data, seed=0, **settings)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"collate_fn": total},
        {"collate_fn": list},
        {"timeout": 20, **FORK},
        {"prefetch_factor": 4, **FORK},
        {"persistent_workers": True, **FORK},
        {"worker_init_fn": tell, **FORK},
        {"multiprocessing_context": torch.multiprocessing.get_context("fork"), "num_workers": 1},
        {"in_order": True, "sampler": None, "generator": None, "batch_sampler": None},
        {"batch_size": None},
        {"drop_last": True},
    ],
    ids=",".join,
)
def test_with_a_seed_dataloaders_other_settings_work(settings: Settings) -> None:
    settings = {"batch_size": 5, **settings}
    made, plain = Loader(Numbers(), seed=0, **settings), DataLoader(Numbers(), **settings)
    found, expected = list(made), list(plain)
    if settings.get("collate_fn") is total:  # draws random numbers
        found, expected = [X.floor() for X in found], [X.floor() for X in expected]
    assert same(found, expected)
    assert len(made) == len(plain)
    made.close()


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator")
@pytest.mark.parametrize("workers", [{}, FORK])
def test_with_a_seed_pin_memory_is_dataloaders(workers: Settings) -> None:
    batches = list(Loader(Numbers(), 5, seed=0, pin_memory=True, **workers))
    assert all(X.is_pinned() == torch.accelerator.is_available() for X, _ in batches)
    assert len(batches) == 8


@pytest.mark.parametrize(
    "settings",
    [{"num_workers": -1}, {"batch_size": 0}, {"num_wokers": 1}, {"prefetch_factor": 2}, {"timeout": -1}],
    ids=",".join,
)
def test_with_a_seed_mistakes_end_as_with_dataloader(settings: Settings) -> None:
    expected = error(lambda: DataLoader(Numbers(), **settings))
    found = error(lambda: Loader(Numbers(), seed=0, **settings))
    assert found[0] is expected[0]
    assert found[1] in expected[1]


@pytest.mark.parametrize("timeout", [1e30, float("inf"), float("nan")])
def test_with_a_seed_a_timeout_that_no_clock_can_hold_is_refused(timeout: float) -> None:
    with pytest.raises(UserError, match=r"^loader.timeout=.*: must be at most .* seconds; 0 waits for ever"):
        Loader(Numbers(), seed=0, timeout=timeout, num_workers=1)


def test_a_seed_may_be_any_whole_number() -> None:
    orders = {Loader(Numbers(), shuffle=True, seed=seed).order_digest() for seed in (0, np.int64(0))}
    assert len(orders) == 1
    assert Loader(Numbers(), seed=np.int64(3)).state_dict()["seed"] == 3
    for seed in (-1, 2**100):
        assert len(list(Loader(Numbers(), 5, shuffle=True, seed=seed))) == 8


@pytest.mark.parametrize("name", ["seed", "rank", "world_size"])
@pytest.mark.parametrize("value", [1.5, "1"])
def test_a_number_that_is_not_whole_is_refused_by_its_name(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"^Loader: {name}={value!r}: must be a whole number$"):
        Loader(Numbers(), **{"seed": 0, name: value})
