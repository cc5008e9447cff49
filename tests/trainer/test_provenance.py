"""What a run says of the code that it came from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from feedrate.trainer import provenance


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One commit with a file of code."""
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    (tmp_path / "src").mkdir()
    (tmp_path / "src/model.py").write_text("width = 1\n")
    (tmp_path / ".gitignore").write_text("*.tmp\n")
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "one"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def test_a_committed_tree_has_no_difference(repository):
    code = provenance.code_version()
    assert len(code.commit) == 40
    assert code.diff == ""
    assert provenance.size_of_diff(code.diff) == "nothing"


def test_code_and_configuration_that_are_not_tracked_yet_count_as_uncommitted(repository):
    (repository / "src/mine.py").write_text("scale = 1\n")
    (repository / "src/notes.tmp").write_text("ignored\n")
    (repository / "data.csv").write_text("no code\n")
    before = provenance.code_version().diff
    assert "+++ b/src/mine.py" in before
    assert "+scale = 1" in before
    assert "ignored" not in before
    assert "no code" not in before
    (repository / "src/mine.py").write_text("scale = 2\n")
    assert provenance.size_of_diff(provenance.code_version().diff) != provenance.size_of_diff(before)
