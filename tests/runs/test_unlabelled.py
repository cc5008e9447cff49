"""A folder of samples without labels is predicted whole, or an error says why not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from feedrate.dataset import build_data, list_IDs
from feedrate.errors import UserError
from feedrate.runs.unlabelled import unlabelled

NODE = {"_target_": "feedrate.dataset.TensorFiles"}


def save(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(torch.ones(3), path)


def IDs(root: Path, run: Path) -> list[str]:
    """The IDs that are predicted, each of which can be read."""
    for name, text in (
        ("partition.json", '{"train": ["a"], "validation": ["b"]}'),
        ("labels.json", '{"a": 0, "b": 1}'),
    ):
        run.mkdir(exist_ok=True)
        (run / name).write_text(text)
    save(run / "a.pt", run / "b.pt")
    data = unlabelled(NODE, root, build_data({**NODE, "root": str(run)}, 0), 0)
    found = list(list_IDs(data.partition["train"]) or [])
    assert [X.sum() for X, _ in (data.partition["train"][i] for i in range(len(found)))] == [3] * len(found)
    return found


def test_folders_behind_links_are_predicted_too_and_loops_of_links_end(tmp_path: Path) -> None:
    root, other = tmp_path / "new", tmp_path / "elsewhere"
    save(root / "a.pt", root / "deep/b.pt", other / "c.pt", other / "deep/d.pt")
    (root / "linked").symlink_to(other)
    (root / "deep/up").symlink_to(root)
    (root / "loop").symlink_to("loop")
    (other / "deep/back").symlink_to(other)
    (root / "file.pt").symlink_to(other / "c.pt")
    assert IDs(root, tmp_path / "run") == ["a", "deep/b", "file", "linked/c", "linked/deep/d"]
    (tmp_path / "link").symlink_to(root)
    assert IDs(tmp_path / "link", tmp_path / "run") == ["a", "deep/b", "file", "linked/c", "linked/deep/d"]


def test_hidden_files_and_folders_are_no_samples(tmp_path: Path) -> None:
    root = tmp_path / "new"
    save(root / "a.pt", root / "x.pt/b.pt", root / "x.pt/._b.pt", root / ".cache/c.pt")
    (root / "._a.pt").write_bytes(b"\0\5\x16\7")
    assert IDs(root, tmp_path / "run") == ["a", "x.pt/b"]


def test_a_y_in_the_files_is_not_looked_at(tmp_path: Path) -> None:
    root = tmp_path / "new"
    root.mkdir()
    torch.save((torch.ones(3), torch.zeros(8, 8)), root / "a.pt")
    assert IDs(root, tmp_path / "run") == ["a"]


def test_a_relative_folder_that_is_in_the_current_folder_is_hinted_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from feedrate.config import resolve_path

    save(tmp_path / "fresh/scans/a.pt")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"no such folder.*did you mean {tmp_path}/fresh/scans"):
        IDs(resolve_path("fresh/scans"), tmp_path / "run")
