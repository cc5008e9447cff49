"""The names of many files as the system takes them are those of the paths."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from feedrate.dataset import TensorFiles
from feedrate.dataset.formats.sample_reader import fresh
from feedrate.dataset.ids import IDs
from feedrate.dataset.storage.paths import Names, Paths
from feedrate.dataset.storage.uring import Uring


def named(names: Names, paths: Sequence[str]) -> list[str]:
    found = names.of(paths)
    assert found is not None
    _, addresses = found
    return [os.fsdecode(ctypes.string_at(int(address))) for address in addresses]


@pytest.mark.parametrize(
    "every",
    [
        [f"{i:03d}" for i in range(50)],
        [f"sub/{'x' * (i % 5)}{i}" for i in range(50)],
        [f"{i:02d} \N{SNOWMAN} ä" for i in range(50)],
    ],
    ids=["alike", "of various lengths", "beyond ASCII"],
)
def test_the_system_gets_the_names_of_the_paths_for_any_batch(every: list[str]) -> None:
    names = Names()
    for count in (3, 50, 1, 7, 50):
        for root, ending in (("/some/ä", ".pt"), ("/else", ".npy")):
            indices = np.random.default_rng(count).permutation(50)[:count]
            paths = Paths(root, IDs(every), ending, indices)
            assert list(paths) == [f"{root}/{every[index]}{ending}" for index in indices.tolist()]
            assert named(names, paths) == list(paths)


def test_names_that_are_no_list_of_ids_are_taken_as_they_are() -> None:
    assert named(Names(), ["/a/b", "/c", "/d/ä.pt"]) == ["/a/b", "/c", "/d/ä.pt"]


@pytest.mark.parametrize("every", [["a\0b", "cde"], ["a\0bc", "cde"]], ids=["alike", "of various lengths"])
def test_a_zero_byte_ends_no_name_early(every: list[str]) -> None:
    assert Names().of(Paths("/some", IDs(every), ".pt", np.arange(2))) is None


@pytest.mark.parametrize("every", [["a", "b", "c"], ["a", "bb", "ccc"]], ids=["alike", "of various lengths"])
def test_indices_from_the_end_mean_what_they_mean_in_a_list(tmp_path: Path, every: list[str]) -> None:
    for i, ID in enumerate(every):
        torch.save(torch.tensor([i]), tmp_path / f"{ID}.pt")
    files = TensorFiles(every, {ID: i for i, ID in enumerate(every)}, tmp_path)
    for _ in range(3):  # also when the files' layout is known
        found = files.load_batch(np.array([-3, -1, 1]), fresh)
        assert found is not None
        assert [part.view(-1).tolist() for part in found] == [[0, 2, 1]] * 2
    with pytest.raises(IndexError):
        files.load_batch(np.array([0, -4]), fresh)


def test_a_root_that_is_changed_is_where_batches_are_read_from(tmp_path: Path) -> None:
    every = [f"{i}" for i in range(6)]
    for number, place in enumerate(("one", "two")):
        (tmp_path / place).mkdir()
        for i, ID in enumerate(every):
            torch.save(torch.tensor([i, number]), tmp_path / place / f"{ID}.pt")
    files = TensorFiles(every, dict.fromkeys(every, 0), tmp_path / "one")
    for number, place in enumerate(("one", "two")):
        files.root = str(tmp_path / place)
        for _ in range(2):
            found = files.load_X(np.array([3, 1, 2]), fresh)
            assert found is not None
            assert torch.equal(torch.stack(list(found)), torch.tensor([[3, number], [1, number], [2, number]]))


def test_memory_of_a_system_call_that_failed_is_used_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = [f"{i}" for i in range(6)]
    for i, ID in enumerate(every):
        torch.save(torch.tensor([i]), tmp_path / f"{ID}.pt")
    files = TensorFiles(every, dict.fromkeys(every, 0), tmp_path)
    held: list[Any] = []

    def fails(ring: Uring, names: np.ndarray, pieces: np.ndarray, size: int, memory: Any) -> np.ndarray:
        held.append(memory)
        raise OSError

    files.load_X(np.array([0, 1]), fresh)  # their layout is learned
    files.load_X(np.array([0, 1]), fresh)
    monkeypatch.setattr(Uring, "read", fails)
    for first, second in ((0, 1), (4, 5)):
        found = files.load_X(np.array([first, second]), fresh)
        assert found is not None
        assert [int(X) for X in found] == [first, second]
    if not held:
        pytest.skip("this system has no io_uring, or does not let this process use it")
    ((names, _, room),) = held  # the file's name was not looked up again
    assert bytes(names[:, len(f"{tmp_path}/")]) == b"01"
    assert all(other is not room for other in files._reader._scatter._kept.rooms.values())
