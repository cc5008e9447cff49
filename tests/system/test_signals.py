"""A signal stops a program in order, a second Ctrl-C at once, and the exit code tells which signal it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, cast

import pytest

from feedrate.system.signals import Interrupted, Interruption

STEPS = """
import sys, time
from feedrate.system.signals import Interruption
interruption = Interruption()
interruption.listen()
print("ready", flush=True)
try:
    while True:
        time.sleep(0.02)
        interruption.check()
except KeyboardInterrupt as error:
    sys.exit(error.exit_code)
"""

JOB = """
import atexit, time
from feedrate.cli.launch import launch
from feedrate.system.signals import Interruption

def leave_slowly():
    print("leaving", flush=True)
    time.sleep(60)

def job(config):
    atexit.register(leave_slowly)
    interruption = Interruption()
    interruption.listen()
    print("ready", flush=True)
    try:
        while True:
            time.sleep(0.02)
            interruption.check()
    finally:
        interruption.leave()

launch(job, "train")
"""


def program(folder: Path, code: str, *arguments: str, shell: str = "") -> subprocess.Popen[str]:
    """A program that says when it is ready for signals.

    Args:
        shell: what a shell does before it starts the program.
    """
    (folder / "program.py").write_text(code)
    process = subprocess.Popen(
        ["sh", "-c", f'{shell}\nexec "$@"', "sh", sys.executable, str(folder / "program.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
    )
    heard(process, "ready")
    return process


def heard(process: subprocess.Popen[str], word: str) -> None:
    line = cast(IO[str], process.stdout).readline()
    assert line == f"{word}\n", process.communicate()


@pytest.mark.parametrize(
    ("signum", "code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)],
    ids=str,
)
def test_a_signal_ends_it_after_the_step_with_its_own_exit_code(tmp_path, signum, code):
    process = program(tmp_path, STEPS)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert errors == f"\n{signum.name}: stopping in order; another Ctrl-C stops at once\n"


def test_under_nohup_it_outlives_its_terminal(tmp_path):
    process = program(tmp_path, STEPS, shell="trap '' HUP")
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "SIGHUP" not in errors


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=str)
def test_while_python_ends_only_CtrlC_stops_at_once_with_exit_code_130_and_one_line(tmp_path, first):
    process = program(tmp_path, JOB, f"hydra.run.dir={tmp_path}/run", "hydra/job_logging=none")
    process.send_signal(first)
    heard(process, "leaving")
    for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        process.send_signal(signum)
    _, errors = process.communicate(timeout=30)  # instead of the 60 s that it would take to leave
    assert process.returncode == 130
    assert errors.splitlines() == [
        "", f"{first.name}: stopping in order; another Ctrl-C stops at once", f"stopped by {first.name}", "interrupted",
    ]  # fmt: skip


def test_only_a_second_CtrlC_hurries_since_SIGHUP_is_sent_twice():
    stop = Interruption()
    stop.listen()
    try:
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        with pytest.raises(KeyboardInterrupt, match="stopped at once"):
            signal.raise_signal(signal.SIGINT)
    finally:
        stop.leave()
    with pytest.raises(Interrupted) as raised:
        stop.check()
    assert raised.value.exit_code == 129
