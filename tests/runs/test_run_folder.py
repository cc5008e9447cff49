"""A run folder has one owner at a time; a dead one's is taken over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO, cast

import pytest

from feedrate.errors import UserError
from feedrate.runs.run_folder import RunFolder


def test_a_living_owner_keeps_others_out(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(UserError, match=f"hydra.run.dir=.*/run: process {os.getpid()} uses this run folder"):
        RunFolder(tmp_path / "run")
    with pytest.raises(UserError, match=r"trainer.resume=.*; wait for it, or name another"):
        RunFolder(tmp_path / "run", named_by="trainer.resume")
    folder.release()
    RunFolder(tmp_path / "run").release()


def test_a_dead_owner_s_folder_is_taken_over(tmp_path):
    source = str(Path(__file__).parents[2] / "src")
    code = f"import sys; sys.path.insert(0, {source!r})\nfrom pathlib import Path\n" \
           "from feedrate.runs.run_folder import RunFolder\n" \
           f"RunFolder(Path({str(tmp_path)!r}))\nimport os; os._exit(9)"  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=False)
    assert (tmp_path / "lock").exists()
    folder = RunFolder(tmp_path)
    assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    folder.release()


CLAIM = """
import sys
from pathlib import Path
from feedrate.errors import UserError
from feedrate.runs.run_folder import RunFolder
print("ready", flush=True)
sys.stdin.readline()  # the starting shot
try:
    RunFolder(Path(sys.argv[1]))
    print("it is mine", flush=True)
except UserError:
    print("refused", flush=True)
sys.stdin.read()  # an owner lives until all have spoken
"""


def test_of_many_processes_that_find_a_dead_owner_s_folder_one_gets_it(tmp_path):
    source = str(Path(__file__).parents[2] / "src")
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "lock").write_text(json.dumps({"pid": 2**22 + 1, "started": 1.0}))
        started = [
            subprocess.Popen(
                [sys.executable, "-c", CLAIM, str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": source},
            )
            for _ in range(6)
        ]
        pipes = [(cast(IO[str], process.stdin), cast(IO[str], process.stdout)) for process in started]
        assert [output.readline() for _, output in pipes] == ["ready\n"] * 6
        for shot, _ in pipes:
            shot.write("go\n")
            shot.flush()
        assert sorted(output.readline() for _, output in pipes) == ["it is mine\n", *["refused\n"] * 5]
        for process in started:
            process.communicate(timeout=60)
