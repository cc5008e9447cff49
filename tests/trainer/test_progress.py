"""A live line in a terminal, one plain line per epoch anywhere else."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from at_once import at_once
from feedrate.trainer import progress
from feedrate.trainer.progress import Progress

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def outputs(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of the same run in a terminal and into a pipe."""
    folder = tmp_path_factory.mktemp("progress")

    def command(name: str) -> list[str]:
        return [
            *(sys.executable, "src/train.py", f"dataset.root={digits}", f"hydra.run.dir={folder}/{name}"),
            *("tracking=none", "trainer.max_epochs=2", "loader.num_workers=0", "dataset.limit=512"),
            *("model=simulated", "model.step_ms=25", "loader.batch_size=16"),
        ]

    return at_once(
        {
            "terminal": lambda: in_terminal(command("terminal")),
            "pipe": lambda: (
                subprocess.run(command("pipe"), cwd=ROOT, capture_output=True, text=True, check=True).stdout
            ),
        }
    )


def in_terminal(command: list[str]) -> str:
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=follower, stderr=follower, env={**os.environ, "COLUMNS": "100"}
    )
    os.close(follower)
    output = b""
    while True:
        try:
            read = os.read(leader, 65_536)
        except OSError:  # the terminal closes with its last writer
            break
        if not read:
            break
        output += read
    assert process.wait() == 0, output.decode()
    return output.decode()


def test_a_terminal_shows_a_live_line_that_leaves_only_the_epochs_lines(outputs):
    output = outputs["terminal"]
    drawn = {step: part for part in output.split("\r\x1b[2K") for step in re.findall(r"(\d+)/32  loss", part)}
    assert any(int(step) >= 10 for step in drawn)
    for step, part in drawn.items():
        for word in ("epoch", "loss", "left"):
            assert word in part
        for word in ("samples/s", "wait", "ms (", " %)"):
            assert (word in part) == (int(step) >= 10)  # a rate needs ten steps
        assert "\n" not in part  # each is erased before the next line is written
    assert "\x1b[2Kepoch 1/2  loss" in output


def test_a_file_gets_one_plain_line_for_each_epoch(outputs):
    lines = [line for line in outputs["pipe"].splitlines() if line.startswith("epoch")]
    assert len(lines) == 2
    assert "\x1b" not in outputs["pipe"]
    for word in ("loss", "val loss", "accuracy", "samples/s", "wait", "left"):
        assert word in lines[0]


def test_the_time_left_counts_the_steps_that_are_still_to_come(monkeypatch, caplog):
    """Half an epoch after a resume at 2 epochs; and a run that max_steps ends in the middle of its third epoch."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    metrics = {"train/loss": 1.0, "validation/loss": 1.0}
    resumed, limited = Progress(15, 10, 15), Progress(15, 10, 2.5)
    resumed.begin(2.5)
    with caplog.at_level("INFO", "feedrate"):
        now[0] = 30.0
        resumed.epoch(2, metrics, 1.0)
        limited.epoch(1, metrics, 1.0)
        limited.epoch(2, metrics, 1.0)
    lines = [record.message.partition("1 s")[2].strip() for record in caplog.records]
    assert lines == ["12:00 left", "00:08 left", ""]
