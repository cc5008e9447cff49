"""Open files that forked workers would share are reported before the fork, with their place and the remedy."""

from __future__ import annotations

import io
import logging
import mmap
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset

from feedrate.dataset.open_files import _warn
from feedrate.loader import Loader, TorchLoader

pytestmark = pytest.mark.usefixtures("no_workers_left")


class Raw(Dataset[Any]):
    """Samples of 8 bytes in one file; whatever else it is given lies in its attributes."""

    def __init__(self, **held: Any) -> None:
        vars(self).update(held)

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        return index


@pytest.fixture(autouse=True)
def told_anew() -> Iterator[None]:
    _warn.cache_clear()
    yield
    _warn.cache_clear()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "raw").write_bytes(bytes(64))
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("a", "a")
    return tmp_path / "raw"


def notes(data: Dataset[Any], caplog: pytest.LogCaptureFixture, method: str | None = "fork", **more: Any) -> list[str]:
    caplog.clear()
    settings = {"engine": "process", "num_workers": 1, "multiprocessing_context": method, **more}
    with caplog.at_level(logging.WARNING, "feedrate"):
        assert len(list(Loader(data, 4, seed=0, **settings))) == len(data) // 4  # type: ignore[arg-type]
    return caplog.messages


def test_an_open_file_in_a_dataset_is_told_with_its_attribute_and_the_remedy(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with path.open("rb") as file:
        (note,) = notes(Raw(file=file), caplog)
        assert note.startswith("note: Raw.file is an open file, and forked workers share its position")
        assert "open it in __getitem__" in note
        assert notes(Raw(file=file), caplog) == []  # reported once
        settings: dict[str, Any] = {"num_workers": 1, "multiprocessing_context": "fork"}
        data = Raw(other=file)
        torchs = TorchLoader(torch.utils.data.DataLoader(data, **settings))
        with caplog.at_level(logging.WARNING, "feedrate"):
            torchs.start()
        assert caplog.messages[-1].startswith("note: Raw.other is an open file")


def test_open_files_are_found_below_a_subset_and_in_archives(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with path.open("rb") as raw, path.open() as text, zipfile.ZipFile(path.with_name("zip")) as archive:
        for data, place in [
            (Subset(Raw(file=raw), range(4)), "Raw.file"),
            (Raw(text=text), "Raw.text"),
            (Raw(archive=archive), "Raw.archive"),
        ]:
            (said,) = notes(data, caplog)
            assert said.startswith(f"note: {place} is an open file, ")
            _warn.cache_clear()


def test_what_has_no_position_to_share_is_left_alone(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with path.open("rb") as closed:
        mapped = mmap.mmap(closed.fileno(), 0, access=mmap.ACCESS_READ)
        number = closed.fileno()
    harmless = {"mapped": mapped, "array": np.memmap(path), "memory": io.BytesIO(b"abc"), "descriptor": number}
    with path.with_name("log").open("w") as log:
        data = Raw(closed=closed, log=log, **harmless, texts=["a"] * 100, path=path)
        assert notes(data, caplog) == []


def test_workers_that_are_not_forked_share_nothing(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = Unsent()
    with path.open("rb") as data.file:
        assert notes(data, caplog, method="spawn") == []


class Unsent(Raw):
    """Leaves its file out where it is sent."""

    def __reduce__(self) -> Any:
        return Unsent, ()


def test_open_handles_of_h5py_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "data.h5", "w") as made:
        made["group/X"] = np.arange(8)
    file = h5py.File(tmp_path / "data.h5")
    for held in (file, file["group"], file["group/X"]):
        (said,) = notes(Raw(held=held), caplog)
        assert said.startswith("note: Raw.held is an open file, and forked workers share")
        _warn.cache_clear()
    file.close()
    assert notes(Raw(closed=file), caplog) == []
