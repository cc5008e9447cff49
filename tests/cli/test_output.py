"""A program continues after the reader of its output has ended, and keeps its exit code."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from feedrate.cli.output import outlive_readers
outlive_readers()
print("first", flush=True)
sys.stdin.readline()
for stream in (sys.stdout, sys.stderr):
    print("x" * 100_000, file=stream)
sys.exit(7)
"""


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_it_goes_on_when_its_reader_is_gone(kind):
    reader, writer = os.pipe() if kind == "pipe" else pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=writer,
        stderr=writer,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
    )
    os.close(writer)
    assert os.read(reader, 100).startswith(b"first")
    os.close(reader)
    process.communicate(b"go on\n", timeout=60)
    assert process.returncode == 7


def test_what_is_read_arrives_whole_and_a_full_disk_is_still_an_error():
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=b"\n", capture_output=True, timeout=60, env=environment
    )
    assert done.stdout == b"first\n" + b"x" * 100_000 + b"\n"
    assert done.stderr == b"x" * 100_000 + b"\n"
    with Path("/dev/full").open("wb") as full:
        failed = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            input=b"\n",
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
            env=environment,
        )
    assert b"No space left on device" in failed.stderr
