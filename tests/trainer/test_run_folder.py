"""A run folder has one owner at a time; a dead one's is taken over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from feedrate.errors import UserError
from feedrate.trainer.run_folder import RunFolder


def test_a_living_owner_keeps_others_out(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(UserError, match=f"hydra.run.dir=.*/run: process {os.getpid()} is using this run folder"):
        RunFolder(tmp_path / "run")
    with pytest.raises(UserError, match=r"trainer.resume=.*; wait for it, or name another"):
        RunFolder(tmp_path / "run", named_by="trainer.resume")
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


def test_of_many_processes_that_find_a_dead_owner_s_folder_one_gets_it(tmp_path):
    source = str(Path(__file__).parents[2] / "src")
    code = f"import sys, time; sys.path.insert(0, {source!r})\nfrom pathlib import Path\n" \
           "from feedrate.errors import UserError\nfrom feedrate.trainer.run_folder import RunFolder\n" \
           "time.sleep(max(0, float(sys.argv[2]) - time.time()))\n" \
           "try:\n    RunFolder(Path(sys.argv[1]))\nexcept UserError:\n    sys.exit(3)\ntime.sleep(1)"  # fmt: skip
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "lock").write_text(json.dumps({"pid": 2**22 + 1, "started": 1.0}))
        together = str(time.time() + 1.0)
        started = [subprocess.Popen([sys.executable, "-c", code, str(folder), together]) for _ in range(6)]
        assert sorted(process.wait() for process in started) == [0, 3, 3, 3, 3, 3]
