"""A run folder has one owner at a time; a dead one's is taken over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from feedrate.errors import UserError
from feedrate.trainer.run_folder import RunFolder


def test_a_living_owner_keeps_others_out(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(UserError, match=f"process {os.getpid()} is using this run folder"):
        RunFolder(tmp_path / "run")
    folder.release()
    RunFolder(tmp_path / "run").release()


def test_a_dead_owner_s_folder_is_taken_over(tmp_path):
    source = str(Path(__file__).parents[2] / "src")
    code = f"import sys; sys.path.insert(0, {source!r})\nfrom pathlib import Path\n" \
           "from feedrate.trainer.run_folder import RunFolder\n" \
           f"RunFolder(Path({str(tmp_path)!r}))\nimport os; os._exit(9)"  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=False)
    assert (tmp_path / "lock").exists()
    folder = RunFolder(tmp_path)
    assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    folder.release()


def test_a_number_that_another_process_has_got_since_is_no_owner(tmp_path):
    (tmp_path / "lock").write_text(json.dumps({"pid": os.getpid(), "started": 1.0}))
    folder = RunFolder(tmp_path)
    assert json.loads((tmp_path / "lock").read_text())["started"] != 1.0
    folder.release()
