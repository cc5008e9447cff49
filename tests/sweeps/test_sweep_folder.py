"""Which folder a sweep gets, for sweeps that begin at the same instant, and what is to be done for each of its jobs."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, cast

import pytest
from omegaconf import OmegaConf

from feedrate.cli.launch import _register_resolvers, plain
from feedrate.config import check
from feedrate.errors import UserError
from feedrate.reporting.report import Report
from hydra_plugins.feedrate_launcher import _name
from hydra_plugins.feedrate_launcher._folder import add, attempt, discard, mark, open_folder, wait_for
from hydra_plugins.feedrate_launcher._jobs import Job
from hydra_plugins.feedrate_launcher._sweep import Sweep
from saved_run import compose

ROOT = Path(__file__).resolve().parents[2]
JOB = Job(number=1, config=cast(Any, SimpleNamespace()), job_id="j", settings={}, command="", subfolder="1",
          composed=OmegaConf.create())  # fmt: skip

STARTS = """
import sys, time
from pathlib import Path
from feedrate.errors import UserError
from hydra_plugins.feedrate_launcher._folder import open_folder
fresh, instant = Path(sys.argv[1]), float(sys.argv[2])
fresh.mkdir()
(fresh / "multirun.yaml").touch()
while time.time() < instant:
    pass
try:
    print(open_folder(fresh, sys.argv[3], again=False).path)
except UserError as error:
    print("refused:", str(error).splitlines()[0])
sys.stdout.flush()
sys.stdin.read()
"""


def started(folder: Path, sweep_ids: list[str]) -> list[str]:
    """What processes say that open a folder at the same instant, each staying until all have spoken."""
    instant = str(time.time() + 2)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", STARTS, str(folder / f"fresh{i}"), instant, sweep_id],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        )
        for i, sweep_id in enumerate(sweep_ids)
    ]
    said = [cast(IO[str], process.stdout).readline().strip() for process in processes]
    for process in processes:
        process.communicate(timeout=60)
    return said


def summary(folder: Path, **facts: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(facts))


def test_of_starts_at_the_same_instant_one_goes_on_and_other_sweeps_have_folders_of_their_own(tmp_path):
    summary(tmp_path / "earlier", sweep_id="a", started="2026-01-01", status="KILLED")
    said = started(tmp_path, ["a", "a", "b", "c"])
    assert said[:2].count(str(tmp_path / "earlier")) == 1
    assert sum(line.startswith("refused: this sweep is running already: process") for line in said[:2]) == 1
    assert said[2:] == [str(tmp_path / f"fresh{i}") for i in (2, 3)]
    assert sorted(path.name for path in tmp_path.glob("fresh*")) == ["fresh2", "fresh3"]  # Hydra's others are gone
    assert all((tmp_path / f"fresh{i}/summary.json").exists() for i in (2, 3))


def test_a_finished_sweep_begins_anew_and_an_interrupted_one_goes_on_unless_told_otherwise(tmp_path):
    first = open_folder(tmp_path / "first", "a", again=False)
    add(first, status="KILLED")
    first.release()
    second = open_folder(tmp_path / "second", "a", again=False)
    assert second.path == tmp_path / "first"
    add(second, status="FINISHED")
    second.release()
    third = open_folder(tmp_path / "third", "a", again=False)
    assert third.path == tmp_path / "third"
    third.release()
    assert open_folder(tmp_path / "fourth", "a", again=True).path == tmp_path / "fourth"


def test_a_folder_that_holds_another_sweep_is_refused(tmp_path):
    open_folder(tmp_path / "mine", "a", again=False).release()
    with pytest.raises(UserError, match="holds a sweep already; name a new folder"):
        open_folder(tmp_path / "mine", "b", again=False)
    assert not (tmp_path / "mine/lock").exists()


def test_only_what_hydra_itself_has_made_is_removed(tmp_path):
    (tmp_path / "multirun.yaml").touch()
    (tmp_path / "mine.txt").touch()
    discard(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("status", "job_id", "checkpoint", "state", "name"),
    [
        ("FINISHED", "j", True, "finished", "1"),
        ("FINISHED", "other", True, "new", "1_2"),
        ("KILLED", "j", True, "resume", "1"),
        ("RUNNING", "j", True, "resume", "1"),
        ("RUNNING", "j", False, "new", "1_2"),
        ("FAILED", "j", True, "new", "1_2"),
    ],
)
def test_a_finished_job_is_kept_an_interrupted_one_goes_on_and_a_failed_one_runs_anew(
    tmp_path, status, job_id, checkpoint, state, name
):
    assert attempt(JOB, tmp_path)[1] == "new"
    summary(tmp_path / "1", status=status, job_id=job_id)
    if checkpoint:
        (tmp_path / "1/checkpoints").mkdir()
        (tmp_path / "1/checkpoints/last-1.pt").touch()
    assert attempt(JOB, tmp_path) == (tmp_path / name, state)


def test_an_attempt_after_two_failures_has_a_folder_of_its_own(tmp_path):
    for name in ("1", "1_2"):
        summary(tmp_path / name, status="FAILED", job_id="j")
    assert attempt(JOB, tmp_path)[0] == tmp_path / "1_3"
    assert attempt(replace(JOB, number=2, subfolder="2"), tmp_path)[0] == tmp_path / "2"


def test_jobs_that_a_killed_launcher_left_are_waited_for_and_dead_ones_marked(tmp_path):
    folder = tmp_path / "1"
    summary(folder, status="RUNNING", job_id="j")
    code = f"""
import time
from pathlib import Path
from feedrate.runs.run_folder import RunFolder
RunFolder(Path({str(folder)!r}))
print("owned", flush=True)
time.sleep(1)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": f"{ROOT}/src"}
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "owned\n"
    wait_for([JOB], tmp_path)
    assert process.wait(timeout=30) == 0
    process.stdout.close()
    assert not (folder / "lock").exists()
    assert json.loads((folder / "summary.json").read_text())["status"] == "KILLED"


def job(*overrides: str) -> Job:
    _register_resolvers()
    return replace(JOB, config=check(plain(compose("train", ["tracking=none", *overrides]))), job_id=str(overrides))


def test_a_job_that_could_not_say_how_it_ended_is_marked_and_one_that_never_ran_stands_in_the_table(tmp_path):
    mark(tmp_path / "1", "KILLED", "killed by SIGKILL")  # before it could say anything itself
    summary(tmp_path / "1_2", status="FAILED", error="its own words")
    mark(tmp_path / "1_2", "FAILED", "another's")
    said = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("1", "1_2")]
    assert [(one["status"], one["error"]) for one in said] == [
        ("KILLED", "killed by SIGKILL"), ("FAILED", "its own words"),
    ]  # fmt: skip

    opened = open_folder(tmp_path / "sweep", "a", again=False)
    sweep = Sweep(master=OmegaConf.create(), folder=opened, at_once=1, name="s", settings={},
                  config=job().config, report=Report([]), words=lambda _: "")  # fmt: skip
    with pytest.raises(UserError, match="1 of 1 jobs did not finish"), sweep.open([JOB]):
        sweep.results[2] = sweep.result(replace(JOB, number=2), "FAILED", "it failed")  # fail_fast: the first never ran
    rows = list(csv.DictReader((opened.path / "sweep.csv").open()))
    assert [(row["status"], row["error"]) for row in rows] == [("NOT RUN", ""), ("FAILED", "it failed")]


def test_a_sweep_is_called_by_what_all_jobs_share_and_what_is_swept():
    choices = {"model": "cnn", "dataset": "digits"}
    assert _name(choices, ["seed"]) == "sweep cnn-digits seed"
    assert _name(choices, ["model", "loader.batch_size"]) == "sweep digits model x batch_size"
    assert _name(choices, []) == "sweep cnn-digits of one"
