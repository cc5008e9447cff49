"""Batches from workers arrive in reused memory, and a batch that is still held never changes."""

from __future__ import annotations

import gc
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import Dataset, Subset, default_collate

from aftermath import shared_memory
from feedrate.dataset import InMemory, TensorFiles, sample_rng
from feedrate.errors import SampleError
from feedrate.loader import Loader
from feedrate.loader.buffers import SPARE, BufferPool
from loader.conftest import wait_until_loaders_are_gone

SIZE = 96


class Numbered(Dataset[Any]):
    """Sample i is a tensor full of i; X is large enough for the slots to matter."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((3, 40, 40), index, dtype=torch.int32), index


class Point(NamedTuple):
    x: torch.Tensor
    rest: dict[str, Any]


class Nested(Numbered):
    def __getitem__(self, index: int) -> Any:
        return Point(torch.full((5,), index), {"name": f"n{index}", "parts": [torch.ones(index % 3 * 0 + 2), index]})


class Growing(Numbered):
    """Later samples are larger, so that slots must grow; one batch of each size."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((1 + index // 8, 50), index), index


def expected(start: int, stop: int) -> torch.Tensor:
    return torch.stack([Numbered()[i][0] for i in range(start, stop)])


@pytest.mark.usefixtures("no_workers_left")
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_batches_that_are_kept_stay_as_they_were(context: str) -> None:
    loader = Loader(Numbered(), batch_size=4, num_workers=2, seed=0, multiprocessing_context=context)
    kept = [batch for _ in range(2 if context == "fork" else 1) for batch in loader]  # far more than there are slots
    assert len(kept) > 2 * SPARE
    for number, (X, y) in enumerate(kept):
        start = number * 4 % SIZE
        assert torch.equal(X, expected(start, start + 4))
        assert y.tolist() == list(range(start, start + 4))
    loader.close()
    del loader
    gc.collect()
    assert torch.equal(kept[-1][0], expected(SIZE - 4, SIZE))  # also after the workers have ended


@pytest.mark.usefixtures("no_workers_left")
def test_a_part_of_a_dataset_crosses_to_spawned_workers_too() -> None:
    X, y = next(
        iter(Loader(Subset(Items(), [5, 9]), num_workers=1, batch_size=2, seed=0, multiprocessing_context="spawn"))
    )
    assert y.tolist() == [5, 9]
    assert X[:, 0].tolist() == [5, 9]


@pytest.mark.usefixtures("no_workers_left")
def test_a_part_of_a_batch_keeps_its_memory() -> None:
    loader = Loader(Numbered(), batch_size=4, num_workers=1, seed=0)
    rows = [X[2] for X, _ in loader]
    assert [int(row[0, 0, 0]) for row in rows] == list(range(2, SIZE, 4))
    assert all((row == row[0, 0, 0]).all() for row in rows)


@pytest.mark.usefixtures("no_workers_left")
def test_memory_is_used_again_when_batches_are_let_go() -> None:
    loader = Loader(Numbered(), batch_size=4, num_workers=2, seed=0, persistent_workers=True)
    places = set()
    for _ in range(6):
        for X, _y in loader:
            places.add(X.data_ptr())
        del X
    assert len(places) <= 2 * (2 + SPARE)
    loader.close()


@pytest.mark.usefixtures("no_workers_left")
def test_no_descriptor_and_no_shared_memory_stays_behind() -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    settings: dict[str, Any] = {"batch_size": 4, "num_workers": 2, "seed": 0, "multiprocessing_context": "fork"}
    for X, _ in Loader(Numbered(), **settings):  # what torch opens once
        del X
    gc.collect()
    wait_until_loaders_are_gone()
    files, before = descriptors(), shared_memory()
    for _ in range(3):
        loader = Loader(Numbered(), **settings)
        iterator: Iterator[Any] = iter(loader)
        next(iterator)
        del iterator  # in the middle of an epoch
        loader.close()
        del loader
        gc.collect()
    wait_until_loaders_are_gone()
    assert descriptors() <= files
    deadline = time.monotonic() + 60
    while not shared_memory() <= before:  # another program has some for a moment, as each loader has
        assert time.monotonic() < deadline, shared_memory() - before
        time.sleep(0.01)


@pytest.mark.usefixtures("no_workers_left")
def test_batches_thrown_away_with_their_pass_give_their_slots_back() -> None:
    loader = Loader(Numbered(), batch_size=4, num_workers=1, seed=0, persistent_workers=True)
    places = set()
    for _ in range(30):
        X, _y = next(iter(loader))  # the prefetched batches are never requested
        places.add(X.data_ptr())
        assert torch.equal(X, expected(0, 4))
    assert len(places) <= 2 + SPARE
    loader.close()


@pytest.mark.usefixtures("no_workers_left")
def test_a_slot_is_as_large_as_its_batch() -> None:
    loader = Loader(Numbered(), batch_size=4, num_workers=2, seed=0)
    sizes = {X.nbytes + y.nbytes for X, y in loader}
    assert loader._engine is not None
    slots = {len(memory) for memory in loader._engine._buffers.memory.values()}
    assert max(sizes) <= min(slots) <= max(slots) < max(sizes) + 4096 + 128
    loader.close()


@pytest.mark.usefixtures("no_workers_left")
def test_slots_grow_with_the_batches() -> None:
    loader = Loader(Growing(), batch_size=8, num_workers=1, seed=0)
    kept = list(loader)
    for number, (X, _) in enumerate(kept):
        assert X.shape == (8, 1 + number, 50)
        assert [int(x[0, 0]) for x in X] == list(range(number * 8, number * 8 + 8))


@pytest.mark.usefixtures("no_workers_left")
def test_batches_of_any_make_arrive_as_without_workers() -> None:
    for dataset in (Nested(), Numbered()):
        plain = list(Loader(dataset, batch_size=8, num_workers=0, seed=3, shuffle=True))
        crossed = list(Loader(dataset, batch_size=8, num_workers=2, seed=3, shuffle=True))
        assert len(plain) == len(crossed) == SIZE / 8
        for one, other in zip(plain, crossed, strict=True):
            assert type(one) is type(other)
            assert str(one) == str(other)


class Ordered(Numbered):
    """A part of each sample is in a container of a class of its own."""

    part = 1

    def __getitem__(self, index: int) -> Any:
        return torch.full((3,), index), OrderedDict(x=torch.full((4,), index), number=index)


class Turned(Numbered):
    """Tiny images are read with the channels last, and handed out with the channels first."""

    part = 0

    def load_batch(self, indices: np.ndarray, empty: Any) -> Any:
        X = empty((len(indices), 2, 2, 3), torch.int32)
        X[:] = torch.from_numpy(indices)[:, None, None, None]
        return X.permute(0, 3, 1, 2), torch.from_numpy(indices.copy())


@pytest.mark.usefixtures("no_workers_left")
@pytest.mark.parametrize("dataset", [Ordered(), Turned()], ids=lambda dataset: type(dataset).__name__)
def test_what_crosses_in_torchs_own_way_is_not_filled_again_either(dataset: Any) -> None:
    """Also after the rest of its batch, which lies in the buffer, was freed."""
    for settings in ({}, {"engine": "process", "num_workers": 1}):
        batches = Loader(dataset, 4, seed=0, **settings)  # type: ignore[arg-type]
        kept = [batch[dataset.part] for batch in batches]
        for number, part in enumerate(kept):
            rows = part["x"] if isinstance(part, OrderedDict) else part.flatten(1)
            assert torch.equal(rows, torch.arange(4 * number, 4 * number + 4)[:, None].expand_as(rows).to(rows.dtype))
        assert len(kept) == SIZE / 4


def packed(samples: list[Any]) -> PackedSequence:
    return pack_sequence([X.flatten()[: 9 - number] for number, (X, _) in enumerate(samples)])


@pytest.mark.usefixtures("no_workers_left")
def test_a_packed_sequence_crosses_as_it_is() -> None:
    plain = list(Loader(Numbered(), 4, seed=0, collate_fn=packed))
    crossed = list(Loader(Numbered(), 4, seed=0, collate_fn=packed, engine="process", num_workers=1))
    assert type(crossed[0]) is PackedSequence
    assert [batch.data.tolist() for batch in crossed] == [batch.data.tolist() for batch in plain]


class Unsendable:
    """Collates; the batch with sample 12 cannot be sent as long as a file is there."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __call__(self, samples: list[Any]) -> Any:
        X, y = default_collate(samples)
        return (X, y, lambda: None) if 12 in y and self.flag.exists() else (X, y)


@pytest.mark.usefixtures("no_workers_left")
def test_a_slot_whose_first_batch_could_not_be_sent_serves_later_ones(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    flag.touch()
    settings: dict[str, Any] = {"engine": "process", "num_workers": 1, "persistent_workers": True}
    loader = Loader(Numbered(), 4, seed=0, collate_fn=Unsendable(flag), **settings)
    with pytest.raises(SampleError, match="cannot leave its worker"):
        list(loader)
    flag.unlink()
    for number, (X, y) in enumerate(list(loader)):  # all at once need every slot
        assert y.tolist() == list(range(4 * number, 4 * number + 4))
        assert torch.equal(X, expected(4 * number, 4 * number + 4))
    loader.close()


@pytest.mark.usefixtures("no_workers_left")
@pytest.mark.parametrize("persistent", [False, True])
def test_closing_gives_the_slots_memory_back(persistent: bool) -> None:
    def mapped() -> set[str]:
        return {line.split()[5] for line in Path("/proc/self/maps").read_text().splitlines() if "/torch_" in line}

    before = mapped()
    loader = Loader(Numbered(), 4, seed=0, engine="process", num_workers=2, persistent_workers=persistent)
    list(loader)
    loader.close()
    assert mapped() <= before


def test_the_pool_lends_memory_again_only_when_nobody_holds_it() -> None:
    pool = BufferPool()
    first = pool.empty((1 << 17,), torch.uint8)
    part, place = first[5:6], first.data_ptr()
    del first
    second = pool.empty((1 << 17,), torch.uint8)
    assert second.data_ptr() != place
    del part
    assert pool.empty((1 << 15,), torch.int32).data_ptr() == place


def test_what_arrives_after_its_loader_is_gone_is_dropped() -> None:
    from feedrate.loader.buffers import _arrived

    assert _arrived(-1, 0, 0, None, b"") is None


# ---------------------------------------------------------------------------------------------------------
# whole batches at once
# ---------------------------------------------------------------------------------------------------------


class Items(Numbered):
    """Has PyTorch's batched protocol, and records its calls."""

    def __init__(self, bad: int | None = None, short: bool = False) -> None:
        self.bad, self.short, self.requested = bad, short, []

    def __getitems__(self, indices: list[int]) -> list[Any]:
        self.requested.append(list(indices))
        if self.bad in indices:
            raise ValueError("broken")
        noise = [float(sample_rng(number).random()) for number in range(len(indices))]
        samples = [(torch.tensor([index, value]), index) for index, value in zip(indices, noise, strict=True)]
        return samples[:-1] if self.short else samples

    requested: list[list[int]]


class OneByOne(Numbered):
    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.tensor([index, float(sample_rng().random())]), index


def test_getitems_is_used_where_a_dataset_has_it_also_through_a_subset() -> None:
    data = Items()
    list(Loader(data, batch_size=32, seed=0))
    assert data.requested == [list(range(32)), list(range(32, 64)), list(range(64, 96))]
    data.requested.clear()
    list(Loader(Subset(data, [9, 4, 7]), batch_size=2, seed=0))
    assert data.requested == [[9, 4], [7]]


@pytest.mark.parametrize("workers", [0, 2])
def test_random_numbers_are_a_samples_own_however_it_is_asked_for(workers: int) -> None:
    together = Loader(Items(), batch_size=7, seed=1, shuffle=True, num_workers=workers)
    alone = Loader(OneByOne(), batch_size=16, seed=1, shuffle=True)
    for _ in range(2):
        assert torch.equal(torch.cat([X for X, _ in together]), torch.cat([X for X, _ in alone]))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_getitems_names_the_sample(workers: int) -> None:
    with pytest.raises(SampleError, match=r"sample '5': Items.__getitems__ failed with ValueError: broken"):
        list(Loader(Items(bad=5), batch_size=4, seed=0, num_workers=workers))


def test_getitems_must_return_a_sample_for_each_index() -> None:
    with pytest.raises(SampleError, match=r"batch of '0', '1': Items.__getitems__ failed with ValueError: 1 samples"):
        list(Loader(Items(short=True), batch_size=2, seed=0))


def test_a_subclass_with_a_getitem_of_its_own_is_asked_by_it(tmp_path: Path) -> None:
    class Doubled(TensorFiles):
        def __getitem__(self, index: int) -> tuple[Any, Any]:
            X, y = super().__getitem__(index)
            return 2 * X, y

    names = [str(i) for i in range(6)]
    for i, name in enumerate(names):
        torch.save(torch.full((3,), i), tmp_path / f"{name}.pt")
    labels = dict.fromkeys(names, 0)
    assert [int(X[0, 0]) for X, _ in Loader(Doubled(names, labels, tmp_path), seed=0)] == [0, 2, 4, 6, 8, 10]
    assert [int(X[0, 0]) for X, _ in Loader(TensorFiles(names, labels, tmp_path), seed=0)] == list(range(6))
    part = Subset(TensorFiles(names, labels, tmp_path), [4, 1])
    assert [int(X[0, 0]) for X, _ in Loader(part, seed=0)] == [4, 1]


def one_by_one(samples: list[Any]) -> Any:
    return torch.utils.data.default_collate(samples)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [TensorFiles, InMemory])
def test_a_batch_at_once_is_what_collating_its_samples_gives(tmp_path: Path, kind: Any, workers: int) -> None:
    names = [f"{'n' * (i % 3)}{i}" for i in range(20)]
    for i, name in enumerate(names):
        torch.save(torch.full((2, 300), i, dtype=torch.int16), tmp_path / f"{name}.pt")
    labels = {name: i % 4 for i, name in enumerate(names)}
    data = kind(names, labels, tmp_path)
    at_once = list(Loader(data, batch_size=6, shuffle=True, seed=2, num_workers=workers))
    samples = list(Loader(data, batch_size=6, shuffle=True, seed=2, collate_fn=one_by_one))
    for (X, y), (X_samples, y_samples) in zip(at_once, samples, strict=True):
        assert torch.equal(X, X_samples)
        assert X.dtype == X_samples.dtype
        assert torch.equal(y, y_samples)
        assert y.dtype == y_samples.dtype
    assert np.prod(at_once[0][0].shape) == 6 * 600
