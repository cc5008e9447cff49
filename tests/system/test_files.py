"""A file that is being written, or that cannot be written, is whole at every instant or as it was before."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from feedrate.errors import UserError
from feedrate.system.files import atomic_write, check_place, writing

TIMES = 200


def write_often(path: Path, letter: str) -> None:
    for _ in range(TIMES):
        atomic_write(path, letter * 100_000)


def test_a_file_is_whole_at_every_instant(tmp_path: Path) -> None:
    path = tmp_path / "made/option.yaml"
    path.parent.mkdir()
    atomic_write(path, "a" * 100_000)
    writer = multiprocessing.get_context("fork").Process(target=write_often, args=(path, "b"))
    writer.start()
    seen = set()
    while writer.is_alive():
        text = path.read_text()
        seen.add((len(text), len(set(text))))
    assert writer.exitcode == 0
    assert seen == {(100_000, 1)}
    assert list(path.parent.iterdir()) == [path]


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        atomic_write(tmp_path / "folder", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_device_stays_a_device() -> None:
    atomic_write(Path(os.devnull), "text")
    assert Path(os.devnull).is_char_device()


@pytest.mark.parametrize("place", ["folder", "file/option.yaml", "file/below/option.yaml"])
def test_a_place_where_nothing_can_be_written_is_found_before_and_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    said = r"x=1: cannot be written \((Is|Not) a directory\); mend it"
    with pytest.raises(UserError, match=said), writing("x=1", "mend it"):
        check_place(tmp_path / place)


def test_a_place_that_is_looked_at_stays_as_it_is(tmp_path: Path) -> None:
    check_place(tmp_path / "new/below/option.yaml")
    assert not list(tmp_path.iterdir())
