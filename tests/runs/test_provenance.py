"""What a run says of the code that it came from."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from feedrate.runs import provenance

WHO = ["-c", "user.name=a", "-c", "user.email=a@b"]


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One commit with a file of code."""
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    (tmp_path / "src").mkdir()
    (tmp_path / "src/model.py").write_text("width = 1\n")
    (tmp_path / ".gitignore").write_text("*.tmp\n")
    for command in (["init", "-q"], ["add", "."], [*WHO, "commit", "-q", "-m", "one"]):
        git(tmp_path, *command)
    return tmp_path


def test_a_committed_tree_has_no_difference(repository):
    code = provenance.code_version()
    assert len(code.commit) == 40
    assert code.diff == ""
    assert provenance.size_of_diff(code.diff) == "nothing"


@pytest.mark.parametrize("content", [b"caf\xe9 = 1\n", b"\xff\xfew\0i\0", b"\0\1\2", "größe = 1\r\n".encode("cp1252")])
def test_a_change_in_any_encoding_is_recorded(repository, content):
    (repository / "src/model.py").write_bytes(content)
    code = provenance.code_version()
    assert "src/model.py" in code.diff
    code.diff.encode()  # it can be written as UTF-8
    if b"\xe9" in content:
        assert "+caf\\xe9 = 1" in code.diff
    before = provenance.size_of_diff(code.diff)
    (repository / "src/model.py").write_bytes(content + b"\xe8\n")
    assert provenance.size_of_diff(provenance.code_version().diff) != before


def test_large_changes_and_many_large_files_are_cut_and_listed(repository):
    (repository / "src/model.py").write_text("".join(f"width_{i} = {i}\n" for i in range(100_000)))
    (repository / "src/big.bin").write_bytes(bytes(10**6))
    for number in range(300):
        (repository / f"src/{number}.py").write_text(f"{number}\n")
    os.mkfifo(repository / "src/pipe.py")
    (repository / "src/weird\n\udce9.py").touch()
    diff = provenance.code_version().diff
    assert len(diff) < provenance.BYTES + 20_000
    assert provenance.CUT in diff
    assert "and 202 untracked files more" in diff
    assert provenance.size_of_diff(diff).startswith("over ")


def test_what_git_cannot_tell_in_time_is_not_claimed(repository, tmp_path, monkeypatch):
    (repository / "src/model.py").write_text("width = 2\n")
    slow = tmp_path / "bin/git"
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/sh\ncase $* in *diff*) sleep 60;; *) exec {shutil.which("git")} "$@";; esac\n')
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", str(slow.parent), prepend=os.pathsep)
    monkeypatch.setattr(provenance, "SECONDS", 1.0)
    code = provenance.code_version()
    assert (len(code.commit), code.diff) == (40, None)
    assert provenance.size_of_diff(code.diff) == "not recorded"


@pytest.mark.parametrize("around", ["no git", "no repository", "no commit", "another repository"])
def test_without_a_repository_of_its_own_nothing_is_claimed(tmp_path, monkeypatch, around):
    root = tmp_path / "here"
    (root / "src").mkdir(parents=True)
    monkeypatch.setattr(provenance, "ROOT", root)
    if around == "no git":
        monkeypatch.setenv("PATH", str(tmp_path))
    if around == "no commit":
        git(root, "init", "-q")
    if around == "another repository":
        (tmp_path / "notes.txt").write_text("mine\n")
        git(tmp_path, "init", "-q")
        git(tmp_path, "add", "notes.txt")
        git(tmp_path, *WHO, "commit", "-q", "-m", "notes")
    assert provenance.code_version() == provenance.Code("", None)


@pytest.mark.parametrize("kind", ["worktree", "submodule", "below a larger repository", "within a hook"])
def test_every_kind_of_checkout_has_its_commit_and_its_changes(repository, tmp_path, monkeypatch, kind):
    root = tmp_path.parent / f"{tmp_path.name}-other"
    if kind == "worktree":
        git(repository, "worktree", "add", "-q", str(root))
    elif kind == "submodule":
        root.mkdir()
        git(root, "init", "-q")
        git(root, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(repository), "part")
        root = root / "part"
    elif kind == "below a larger repository":
        shutil.copytree(repository / "src", root / "inner/src")
        git(root, "init", "-q")
        git(root, "add", ".")
        git(root, *WHO, "commit", "-q", "-m", "all")
        root = root / "inner"
    else:
        root = repository
        monkeypatch.setenv("GIT_DIR", "/nowhere/.git")
        monkeypatch.setenv("GIT_INDEX_FILE", "/nowhere/index")
    monkeypatch.setattr(provenance, "ROOT", root)
    clean = provenance.code_version()
    assert (len(clean.commit), clean.diff) == (40, "")
    (root / "src/model.py").write_text("width = 2\n")
    (root / "src/mine.py").write_text("new\n")
    changed = provenance.code_version().diff
    assert "+width = 2" in changed
    assert "untracked: src/mine.py" in changed


def test_code_and_configuration_that_are_not_tracked_yet_count_as_uncommitted(repository):
    (repository / "src/mine.py").write_text("scale = 1\n")
    (repository / "src/notes.tmp").write_text("ignored\n")
    (repository / "data.csv").write_text("no code\n")
    before = provenance.code_version().diff
    assert before.startswith("untracked: src/mine.py  git hash ")
    assert "scale" not in before  # listed, not copied
    assert "ignored" not in before
    assert "no code" not in before
    (repository / "src/mine.py").write_text("scale = 2\n")
    assert provenance.size_of_diff(provenance.code_version().diff) != provenance.size_of_diff(before)
