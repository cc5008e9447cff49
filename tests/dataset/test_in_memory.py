"""`dataset=in_memory` holds exactly what `dataset=tensor_files` reads, and refuses what would not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from feedrate.dataset import InMemory, TensorFiles
from feedrate.errors import SampleError, UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    for number in range(4):
        X = torch.randint(0, 255, (2, 3), dtype=torch.uint8, generator=generator)
        (tmp_path / f"scans-{number % 2}").mkdir(exist_ok=True)
        torch.save(X, tmp_path / f"scans-{number % 2}/{number}.pt")
    return tmp_path


NAMES = ["scans-1/3", "scans-0/0", "scans-1/1", "scans-0/2"]


@pytest.mark.parametrize("labels", [[1, 2, 3, 4], [0.5, 1, 2, 3], [[1, 2], [3, 4], [5, 6], [7, 8]], list("abcd")])
def test_every_sample_equals_that_of_the_files(folder: Path, labels: list[object]) -> None:
    by_ID = dict(zip(NAMES, labels, strict=True))
    files, memory = TensorFiles(NAMES, by_ID, folder), InMemory(NAMES, by_ID, folder)
    assert len(memory) == len(files) == 4
    assert list(memory.list_IDs) == NAMES
    assert memory.X.shape == (4, 2, 3)
    for (X, y), (X_file, y_file) in zip(memory, files, strict=True):
        assert X.dtype == X_file.dtype == torch.uint8
        assert torch.equal(X, X_file)
        assert torch.equal(y, y_file) if isinstance(y, torch.Tensor) else y == y_file
        assert type(y) is type(y_file)


def test_files_are_read_once(folder: Path) -> None:
    memory = InMemory(NAMES, dict.fromkeys(NAMES, 0), folder)
    for ID in NAMES:
        (folder / f"{ID}.pt").unlink()
    assert memory[3][0].shape == (2, 3)


@pytest.mark.parametrize(
    "odd", [torch.zeros(3, 2, dtype=torch.uint8), torch.zeros(2, 3)], ids=["another shape", "another dtype"]
)
def test_a_sample_unlike_the_first_is_named(folder: Path, odd: torch.Tensor) -> None:
    torch.save(odd, folder / "scans-0/2.pt")
    with pytest.raises(SampleError) as caught:
        InMemory(NAMES, dict.fromkeys(NAMES, 0), folder)
    assert str(caught.value) == (
        f"sample 'scans-0/2' ({folder}/scans-0/2.pt): is {tuple(odd.shape)} {odd.dtype}, the first sample is (2, 3) "
        "torch.uint8; make them equal, or take the ID out of the partition"
    )
    assert (caught.value.ID, caught.value.path) == ("scans-0/2", f"{folder}/scans-0/2.pt")


def test_a_wrong_file_is_named_as_by_tensor_files(folder: Path) -> None:
    (folder / "scans-0/2.pt").write_bytes(b"")
    with pytest.raises(SampleError, match=r"'scans-0/2'.*is an empty file; restore it"):
        InMemory(NAMES, dict.fromkeys(NAMES, 0), folder)


def test_a_partition_larger_than_memory_is_refused_before_it_is_read(tmp_path: Path) -> None:
    names = [f"{number}" for number in range(10_000)]
    torch.save(torch.zeros(1).expand(5000, 5000), tmp_path / "0.pt")  # the only one that is there
    with pytest.raises(UserError, match=r"needs 1,000\.0 GB of memory") as caught:
        InMemory(names, dict.fromkeys(names, 0), tmp_path)
    assert "dataset=tensor_files" in str(caught.value)


def test_no_sample_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least one sample"):
        InMemory([], {}, tmp_path)
