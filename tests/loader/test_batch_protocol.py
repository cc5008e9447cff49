"""The stored parts of a batch's samples are read together; each sample is then what `__getitem__` returns."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from feedrate.dataset import Packed, TensorFiles, sample_rng
from feedrate.dataset.subset import SubsetWithIDs
from feedrate.errors import SampleError
from feedrate.loader import Loader
from packing import pack_folder

ENGINES = (("inline", 0), ("thread", 2), ("process", 2))
COUNT = 40


def plus_its_own(X: Tensor) -> Tensor:
    return X + float(sample_rng().random())


def plus_pythons(X: Tensor) -> Tensor:
    return X + random.random()


def changed_in_place(X: Tensor) -> Tensor:
    X *= 2
    X += random.random()  # the generator is seeded once a draw is noticed, and the sample is loaded again
    return X


def a_part(X: Tensor) -> Tensor:
    return X[1:]


class OneByOne(Dataset[Any]):
    """The same samples, each from `__getitem__`."""

    def __init__(self, data: Any) -> None:
        self.data, self.list_IDs = data, data.list_IDs

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return self.data[index]


@pytest.fixture(scope="module", params=["alike", "of several shapes"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("samples")
    for number in range(COUNT):
        rows = 20 if request.param == "alike" else 20 + number % 7
        torch.save(torch.full((rows, 50), number, dtype=torch.float32), root / f"{number:02}.pt")
    return root


def files(root: Path, transform: Callable[[Any], Any] | None) -> TensorFiles:
    IDs = [f"{number:02}" for number in range(COUNT)]
    return TensorFiles(IDs, {ID: int(ID) for ID in IDs}, root, transform)


def as_list(samples: list[Any]) -> list[Any]:
    return samples


def content(batches: list[list[Any]]) -> list[tuple[bytes, int]]:
    return [(X.numpy().tobytes(), int(y)) for batch in batches for X, y in batch]


@pytest.mark.parametrize("transform", [None, plus_its_own, a_part, plus_pythons, changed_in_place])
@pytest.mark.parametrize(("engine", "workers"), ENGINES)
def test_samples_are_those_of_getitem(folder: Path, engine: str, workers: int, transform: Any) -> None:
    if engine == "thread" and transform in (plus_pythons, changed_in_place):
        pytest.skip("threads refuse what draws from the global generators")
    options: dict[str, Any] = {"engine": engine} if workers else {}

    def epochs(data: Any) -> list[tuple[bytes, int]]:
        loader = Loader(data, 8, True, num_workers=workers, seed=3, collate_fn=as_list, **options)
        batches = [batch for _ in range(2) for batch in loader]  # kept, so that memory filled again would show
        loader.close()
        return content(batches)

    found = epochs(files(folder, transform))
    expected = Loader(OneByOne(files(folder, transform)), 8, True, seed=3, collate_fn=as_list)
    assert found == content([batch for _ in range(2) for batch in expected])
    assert epochs(SubsetWithIDs(files(folder, transform), range(COUNT))) == found


def test_they_are_read_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requested: list[int] = []
    read = TensorFiles.load_X

    def load_X(self: TensorFiles, indices: np.ndarray, empty: Any) -> Any:
        requested.append(len(indices))
        return read(self, indices, empty)

    monkeypatch.setattr(TensorFiles, "load_X", load_X)
    monkeypatch.setattr(TensorFiles, "__getitem__", lambda *_: pytest.fail("one sample was requested"))
    list(Loader(files(folder, plus_its_own), 8, seed=3, collate_fn=as_list))
    assert requested == [8] * 5


def test_a_dataset_with_a_getitem_of_its_own_is_asked_for_that(folder: Path) -> None:
    class Own(TensorFiles):
        def __getitem__(self, index: int) -> Any:
            return torch.tensor(index), 0

    data = Own([f"{number:02}" for number in range(COUNT)], {f"{n:02}": n for n in range(COUNT)}, folder, a_part)
    assert [X.tolist() for X, _ in Loader(data, 10, seed=3)] == [list(range(at, at + 10)) for at in range(0, COUNT, 10)]


def test_of_a_batch_the_sample_that_cannot_be_read_is_named(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "13.pt").write_bytes(b"no tensor")
    with pytest.raises(SampleError, match=r"sample '13' .*13\.pt") as raised:
        list(Loader(files(tmp_path, plus_its_own), 8, seed=3, collate_fn=as_list))
    assert raised.value.ID == "13"


def test_the_sample_that_takes_longest_to_make_is_told(folder: Path) -> None:
    def slow(X: Tensor) -> Tensor:
        if X[0, 0] == 17:
            time.sleep(0.3)
        return X

    loader = Loader(files(folder, slow), 8, seed=3, collate_fn=as_list)
    reported = [pair for batch in loader.batches() for pair in batch.info.slow]
    index, ns = max(reported, key=lambda pair: pair[1])
    assert index == 17
    assert ns >= 300_000_000


@pytest.mark.parametrize("transform", [None, plus_its_own, changed_in_place])
def test_packed_samples_are_those_of_getitem_too(folder: Path, tmp_path: Path, transform: Any) -> None:
    for path in folder.iterdir():
        shutil.copy(path, tmp_path)
    IDs = sorted(path.stem for path in folder.iterdir())
    (tmp_path / "partition.json").write_text(json.dumps({"train": IDs[1:], "validation": IDs[:1]}))
    (tmp_path / "labels.json").write_text(json.dumps({ID: int(ID) for ID in IDs}))
    data = Packed(pack_folder(tmp_path), transform=transform)
    found = Loader(data, 8, True, seed=3, collate_fn=as_list)
    expected = Loader(OneByOne(data), 8, True, seed=3, collate_fn=as_list)
    assert content([batch for _ in range(2) for batch in found]) == content([b for _ in range(2) for b in expected])


@pytest.mark.parametrize("transform", [plus_its_own, changed_in_place])
def test_samples_that_are_kept_in_shards_meanwhile_are_the_same(folder: Path, tmp_path: Path, transform: Any) -> None:
    for path in folder.iterdir():
        shutil.copy(path, tmp_path)
        os.utime(tmp_path / path.name, (time.time() - 100,) * 2)  # or it might still be written to
    whole = files(folder, transform)
    kept = TensorFiles(whole.list_IDs, {ID: int(ID) for ID in whole.list_IDs}, tmp_path, transform, cache="shards")
    found = Loader(kept, 8, True, seed=3, collate_fn=as_list)
    expected = Loader(OneByOne(whole), 8, True, seed=3, collate_fn=as_list)
    assert content([b for _ in range(3) for b in found]) == content([b for _ in range(3) for b in expected])
