"""One big file of (X, y) becomes a dataset folder that holds exactly its samples."""

from __future__ import annotations

import json
import os
import pickle
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from feedrate.config import PrepareConfig
from feedrate.dataset.catalog import Catalog
from feedrate.dataset.tensor_files import TensorFiles
from feedrate.dataset.writing.big_file import read_big_file
from feedrate.dataset.writing.prepare import _write, prepare
from feedrate.errors import UserError
from feedrate.system.processes import in_processes

COUNT = 30


def images() -> torch.Tensor:
    return torch.rand((COUNT, 1, 4, 5), generator=torch.Generator().manual_seed(0))


def classes() -> torch.Tensor:
    return torch.arange(COUNT) % 3


def run(source: Path, root: Path, **changes: Any) -> dict[str, int]:
    return prepare(PrepareConfig(**{"source": str(source), "root": str(root), "num_workers": 0, **changes}))


def content(root: Path) -> dict[str, bytes]:
    """Every file but what says from where and when the folder was made."""
    return {path.name: path.read_bytes() for path in root.iterdir() if path.name not in ("prepare.json", ".lock")}


def check_folder(root: Path, X: torch.Tensor, y: list[Any]) -> None:
    """That the folder holds the samples of (X, y), through the classes that training reads it with."""
    catalog = Catalog.read(root)
    labels = json.loads((root / "labels.json").read_text())
    seen = []
    for ids in catalog.partition.values():
        dataset = TensorFiles(list(ids), labels, root)
        for index, ID in enumerate(ids):
            assert torch.equal(dataset[index][0], X[int(ID)])
            assert labels[ID] == y[int(ID)]
            seen.append(int(ID))
    assert sorted(seen) == list(range(len(X)))


SAVED: dict[str, Callable[[Path], Path]] = {}


def saved(function: Callable[[Path], Path]) -> Callable[[Path], Path]:
    SAVED[function.__name__] = function
    return function


@saved
def a_tuple(folder: Path) -> Path:
    torch.save((images(), classes()), folder / "all.pt")
    return folder / "all.pt"


@saved
def a_list(folder: Path) -> Path:
    torch.save([images(), classes()], folder / "all.pth")
    return folder / "all.pth"


@saved
def a_dictionary(folder: Path) -> Path:
    torch.save({"y": classes(), "X": images(), "note": "more is allowed"}, folder / "all.pt")
    return folder / "all.pt"


@saved
def part_of_a_larger_storage_in_another_memory_order(folder: Path) -> Path:
    held = torch.full((COUNT + 7, 5, 4, 1), 9.0)
    X = held[3 : 3 + COUNT].permute(0, 3, 2, 1)
    X.copy_(images())
    torch.save((X, classes()), folder / "all.pt")
    return folder / "all.pt"


@saved
def a_parameter_with_gradient(folder: Path) -> Path:
    torch.save((torch.nn.Parameter(images()), classes()), folder / "all.pt")
    return folder / "all.pt"


@saved
def an_npz(folder: Path) -> Path:
    np.savez(folder / "all.npz", X=images().numpy(), y=classes().numpy())
    return folder / "all.npz"


@saved
def a_compressed_npz(folder: Path) -> Path:
    np.savez_compressed(folder / "all.npz", y=classes().numpy(), X=images().numpy())
    return folder / "all.npz"


@saved
def an_npz_in_column_order(folder: Path) -> Path:
    np.savez(folder / "all.npz", X=np.asfortranarray(images().numpy()), y=classes().numpy())
    return folder / "all.npz"


@pytest.mark.parametrize("form", SAVED)
def test_every_form_of_the_big_file_gives_the_same_folder(tmp_path: Path, form: str) -> None:
    num_workers = 2 if form in ("a_tuple", "a_compressed_npz") else 0
    assert run(SAVED[form](tmp_path), tmp_path / "root", num_workers=num_workers) == {"train": 24, "validation": 6}
    check_folder(tmp_path / "root", images(), classes().tolist())
    (tmp_path / "plain").mkdir()
    run(a_tuple(tmp_path / "plain"), tmp_path / "plain/root")
    assert content(tmp_path / "root") == content(tmp_path / "plain/root")


@pytest.mark.parametrize(
    ("y", "task"),
    [
        (classes(), "classification"),
        (classes().reshape(-1, 1), "classification"),
        (classes().to(torch.uint8), "classification"),
        (classes() > 0, "classification"),
        (["cat", "dog", "owl"] * 10, "classification"),
        (np.array(["cat", "dog", "owl"] * 10), "classification"),
        (torch.linspace(0, 1, COUNT), "regression"),
        (torch.linspace(0, 1, COUNT).reshape(-1, 1), "regression"),
        (torch.linspace(0, 1, COUNT).to(torch.bfloat16), "regression"),
        (torch.rand(COUNT, 3, generator=torch.Generator().manual_seed(1)), "regression"),
    ],
)
def test_classes_numbers_and_vectors_become_labels(tmp_path: Path, y: Any, task: str) -> None:
    if isinstance(y, np.ndarray):
        source = tmp_path / "all.npz"
        np.savez(source, X=images().numpy(), y=y)
    else:
        source = tmp_path / "all.pt"
        torch.save((images(), y), source)
    run(source, tmp_path / "root", test_fraction=0.2)
    expected = y if isinstance(y, list) else (y.squeeze(1) if y.ndim == 2 and y.shape[1] == 1 else y).tolist()
    check_folder(tmp_path / "root", images(), expected)
    catalog = Catalog.read(tmp_path / "root")
    assert catalog.targets.task == task
    assert {name: len(ids) for name, ids in catalog.partition.items()} == {"train": 18, "validation": 6, "test": 6}


def test_a_sample_file_does_not_carry_the_whole(tmp_path: Path) -> None:
    torch.save((torch.zeros(200, 1000), torch.arange(200) % 2), tmp_path / "all.pt")
    run(tmp_path / "all.pt", tmp_path / "root")
    assert {path.stat().st_size for path in (tmp_path / "root").glob("*.pt")} == {
        (tmp_path / "root/000.pt").stat().st_size
    }
    assert (tmp_path / "root/000.pt").stat().st_size < 4_000 + 2_000


def test_samples_can_be_of_any_type_and_shape(tmp_path: Path) -> None:
    for number, X in enumerate([classes(), images() > 0.5, images().to(torch.bfloat16), images().to(torch.complex64)]):
        torch.save((X, classes()), tmp_path / f"{number}.pt")
        run(tmp_path / f"{number}.pt", tmp_path / f"root{number}")
        check_folder(tmp_path / f"root{number}", X, classes().tolist())


def test_the_folder_does_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    source = a_tuple(tmp_path)
    for workers in (0, 1, 3):
        run(source, tmp_path / f"root{workers}", num_workers=workers, test_fraction=0.1, seed=3)
    assert all(content(tmp_path / "root0") == content(tmp_path / f"root{workers}") for workers in (1, 3))


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory that a process holds from /proc")
def test_memory_holds_a_sample_and_not_the_whole(tmp_path: Path) -> None:
    torch.save((torch.rand(60, 1 << 18), torch.arange(60) % 2), tmp_path / "all.pt")  # 60 MB

    def held_mb() -> float:
        match = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert match is not None
        return int(match[1]) / 1024

    before = held_mb()
    mapped, _ = read_big_file(tmp_path / "all.pt")
    total = sum(float(X.clone().sum()) for X in mapped)
    assert total > 0
    assert held_mb() - before < 20


def test_a_finished_folder_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = a_tuple(tmp_path)
    run(source, tmp_path / "root")
    files = [path for path in (tmp_path / "root").iterdir() if path.name != ".lock"]  # it is taken, and so touched
    before = [path.stat().st_mtime_ns for path in files]
    assert run(source, tmp_path / "root") == {"train": 24, "validation": 6}
    assert "already done" in capsys.readouterr().out
    assert [path.stat().st_mtime_ns for path in files] == before


def test_what_is_missing_is_written_and_what_is_there_stays(tmp_path: Path) -> None:
    source = a_tuple(tmp_path)
    run(source, tmp_path / "root")
    whole = content(tmp_path / "root")
    (tmp_path / "root/07.pt").unlink()
    (tmp_path / "root/08.pt").write_bytes(whole["08.pt"][:100])
    (tmp_path / "root/partition.json").unlink()
    (tmp_path / "root/.partial-09.pt").write_bytes(b"left from an interruption")
    kept = (tmp_path / "root/06.pt").stat().st_mtime_ns
    run(source, tmp_path / "root")
    assert content(tmp_path / "root") == whole
    assert (tmp_path / "root/06.pt").stat().st_mtime_ns == kept


def test_the_source_may_lie_in_the_folder(tmp_path: Path) -> None:
    run(a_tuple(tmp_path), tmp_path)
    check_folder(tmp_path, images(), classes().tolist())


def test_a_worker_that_is_killed_or_no_longer_needed_leaves_no_other(tmp_path: Path) -> None:
    many = 100_000  # more than are written while this test waits for its turn
    before = _children()
    work = partial(_write, X=torch.zeros(many, 10), root=tmp_path)
    for kill in (False, True):
        progress = in_processes(work, np.array_split(np.arange(many), 2))
        next(progress)
        assert len(_children() - before) >= 2
        if kill:
            next(iter(_children() - before)).kill()
            with pytest.raises(UserError, match=r"ended by SIGKILL.*\n.*continues"):
                list(progress)
        progress.close()
        assert not _children() - before


def _children() -> set[psutil.Process]:
    """Other tests of the session may have left multiprocessing's own servers, so only what comes and goes counts."""
    return set(psutil.Process().children())


# ---------------------------------------------------------------------------------------------------------
# mistakes
# ---------------------------------------------------------------------------------------------------------


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(Path(os.environ["TRAP"])),)


@pytest.mark.parametrize("name", ["torch.pt", "plain.pt", "objects.npz"])
def test_code_in_the_source_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("TRAP", str(tmp_path / "sprung"))
    if name == "torch.pt":
        torch.save((images(), Trap()), tmp_path / name)
    elif name == "plain.pt":
        (tmp_path / name).write_bytes(pickle.dumps((images().numpy(), Trap())))
    else:
        np.savez(tmp_path / name, X=images().numpy(), y=np.array([Trap()] * COUNT, dtype=object))
    with pytest.raises(UserError, match=r"needs? code|pickle|not a file that torch.save wrote") as caught:
        run(tmp_path / name, tmp_path / "root")
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "sprung").exists()
    assert not (tmp_path / "root").exists()


SOURCES: list[tuple[str, Any, str]] = [
    ("all.csv", b"1,2", "its ending must be one of .pt, .pth, .npz"),
    ("all.pt", None, "no such file"),
    ("all.pt", b"", "empty file"),
    ("all.pt", b"hello, world", "not a file that torch.save wrote"),
    ("all.npz", b"hello, world", "cannot be read"),
    ("all.pt", images(), "holds a Tensor, not the pair"),
    ("all.pt", (images(), classes(), classes()), "holds a tuple, not the pair"),
    ("all.pt", {"X": images(), "labels": classes()}, "holds a dict of X, labels, not the pair"),
    ("all.pt", (images(), classes()[:-1]), "X has 30 samples, y 29 labels; each sample"),
    ("all.pt", ([1, 2], classes()), "X is a list; save a dense tensor"),
    ("all.pt", (torch.tensor(1.0), classes()), r"X is a Tensor of shape \(\)"),
    ("all.pt", (images().reshape(COUNT, 20)[:, :0], classes()), r"shape \(30, 0\)"),
    ("all.pt", (torch.zeros(1).expand(COUNT, 10**12), classes()), "repeats its values"),
    ("all.pt", (torch.eye(COUNT).to_sparse(), classes()), "sparse"),
    ("all.pt", (images(), images()), "a vector needs|each label must be a list of"),
    ("all.pt", (images(), ["cat", 1.5] * 15), "numbers with a fraction are mixed with others"),
    ("all.pt", (images(), "cat"), "y is a str; save"),
    ("all.pt", (images(), {"a": 1}), "y is a dict; save"),
    (
        "all.pt",
        (images(), images()[:, 0, 0, 0] / 0 * 0),
        "ID '0' has the label NaN; labels must be finite",
    ),
    ("all.pt", (images()[:1], classes()[:1]), "no sample of 1 is left for validation"),
    ("all.npz", {"images": images().numpy()}, "holds a dict of images, not the pair"),
    ("all.npz", {"X": np.array(["a"] * COUNT), "y": classes().numpy()}, "cannot be read .can't convert"),
]


@pytest.mark.parametrize(("name", "value", "message"), SOURCES, ids=[message[:30] for *_, message in SOURCES])
def test_a_source_that_cannot_be_used_is_explained(tmp_path: Path, name: str, value: Any, message: str) -> None:
    source = tmp_path / name
    if isinstance(value, bytes):
        source.write_bytes(value)
    elif name.endswith(".npz"):
        np.savez(source, **value)
    elif value is not None:
        torch.save(value, source)
    with pytest.raises(UserError, match=message) as caught:
        run(source, tmp_path / "root")
    assert 1 <= len(str(caught.value).splitlines()) <= 3
    assert not (tmp_path / "root").exists()


def test_a_truncated_source_is_named(tmp_path: Path) -> None:
    for form, name in ((a_tuple, "all.pt"), (an_npz, "all.npz")):
        form(tmp_path)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match=f"{name}: (is truncated|cannot be read)"):
            run(tmp_path / name, tmp_path / "root")


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    source = a_tuple(tmp_path)
    root = tmp_path / "root"
    root.mkdir()
    (root / "digit-0001.pt").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"holds other files \(digit-0001.pt; 1 in all\); choose a new folder"):
        run(source, root)
    assert [path.name for path in root.iterdir()] == ["digit-0001.pt"]
    with pytest.raises(UserError, match="is a file"):
        run(source, source)
    with pytest.raises(UserError, match="cannot be written"):
        run(source, source / "below")


@pytest.mark.parametrize("changes", [{"seed": 1}, {"validation_fraction": 0.3}, {"test_fraction": 0.1}])
def test_a_folder_made_with_other_settings_is_left_alone(tmp_path: Path, changes: dict[str, Any]) -> None:
    source = a_tuple(tmp_path)
    run(source, tmp_path / "root")
    before = content(tmp_path / "root")
    with pytest.raises(UserError, match=f"was made with {next(iter(changes))}=.*choose another root, or remove"):
        run(source, tmp_path / "root", **changes)
    assert content(tmp_path / "root") == before


def test_a_folder_made_from_another_source_is_left_alone(tmp_path: Path) -> None:
    source = a_tuple(tmp_path)
    run(source, tmp_path / "root")
    before = content(tmp_path / "root")
    torch.save((images() + 1, classes()), source)
    with pytest.raises(UserError, match=r"was made with source_.*; choose another root"):
        run(source, tmp_path / "root")
    assert content(tmp_path / "root") == before


def test_a_source_named_like_a_sample_is_not_overwritten(tmp_path: Path) -> None:
    source = a_tuple(tmp_path).rename(tmp_path / "07.pt")
    with pytest.raises(UserError, match=r"would overwrite the source 07\.pt"):
        run(source, tmp_path)


def test_fractions_that_leave_nothing_to_train_on_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no sample of 30 is left for train"):
        run(a_tuple(tmp_path), tmp_path / "root", validation_fraction=0.5, test_fraction=0.5)
