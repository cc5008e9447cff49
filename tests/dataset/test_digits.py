"""`dataset=digits` writes itself on first use, once, also when interrupted, or when several processes do it at once."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from pathlib import Path

import pytest
import torch

from feedrate.dataset import Catalog, Digits
from started import in_the_middle, until


def contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir() if path.suffix in (".pt", ".json")}


def test_they_are_1797_images_of_which_a_fifth_of_each_class_validates(digits: Path) -> None:
    catalog = Catalog.read(digits)
    train, validation = (catalog.labels[name] for name in ("train", "validation"))
    assert len(train) + len(validation) == 1797
    assert len(list(digits.glob("*.pt"))) == 1797
    assert catalog.targets.classes == tuple(range(10))
    assert catalog.notes == ()
    counts = [Counter(labels.tensor.tolist()) for labels in (train, validation)]
    for digit in range(10):
        assert counts[1][digit] == -(-(counts[0][digit] + counts[1][digit]) // 5)


def test_a_sample_is_one_channel_of_bytes_and_shows_its_digit(digits: Path) -> None:
    from sklearn.datasets import load_digits

    source = load_digits()
    catalog = Catalog.read(digits)
    data = Digits(catalog.partition["train"], catalog.labels["train"], digits)
    number = int(data.list_IDs[100].removeprefix("digit-"))
    X, y = data[100]
    assert (X.shape, X.dtype, int(y)) == ((1, 8, 8), torch.uint8, source.target[number])
    assert X.max() <= 255
    assert torch.allclose(X[0].double() / 255 * 16, torch.from_numpy(source.images[number]), atol=0.05)


def test_preparing_twice_writes_once(digits: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in digits.iterdir()}
    Digits.prepare(digits)
    assert {path: path.stat().st_mtime_ns for path in digits.iterdir()} == before


fork = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork, and spawning is slow"
)


@fork
def test_what_a_killed_run_left_is_made_good_by_the_next(digits: Path, tmp_path: Path) -> None:
    def kill(folder: Path) -> tuple[Path, list[Path]] | None:
        root = folder / "digits"
        first = multiprocessing.get_context("fork").Process(target=Digits.prepare, args=(root,))
        first.start()
        until(lambda: len(list(root.glob("*.pt"))) >= 100)
        first.kill()
        first.join()
        left = sorted(root.glob("*.pt"))
        return (root, left) if len(left) < 1797 else None

    root, left = in_the_middle(tmp_path, kill)
    assert not (root / "partition.json").exists()
    left[-1].write_bytes(b"PK")  # as a crash of the machine may leave it
    left[0].unlink()
    Digits.prepare(root)
    assert contents(root) == contents(digits)


@fork
def test_two_runs_on_a_fresh_machine_share_the_work(digits: Path, tmp_path: Path) -> None:
    root = tmp_path / "data/digits"
    context = multiprocessing.get_context("fork")
    runs = [context.Process(target=Digits.prepare, args=(root,)) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert [run.exitcode for run in runs] == [0, 0]
    assert contents(root) == contents(digits)
