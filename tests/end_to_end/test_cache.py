"""`python src/train.py dataset.cache=shards`, as a person runs it and kills it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feedrate.config import ROOT
from started import Started, until

pytestmark = pytest.mark.slow


@pytest.fixture
def root(digits: Path, tmp_path: Path) -> Path:
    return shutil.copytree(digits, tmp_path / "digits", ignore=shutil.ignore_patterns(".feedrate"))


def arguments(root: Path, run: Path, workers: int, *further: str) -> list[str]:
    return ["dataset=tensor_files", f"dataset.root={root}", f"loader.num_workers={workers}", "tracking=none",
            "loader.content_digest=true", "trainer.num_threads=1", "trainer.max_epochs=2", f"hydra.run.dir={run}",
            *further]  # fmt: skip


def train(root: Path, run: Path, workers: int, *further: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "src/train.py"), *arguments(root, run, workers, *further)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return {key: summary[key] for key in ("data_digest", "order_digest", "content_digest")} | {
        "loss": [epoch["validation/loss"] for epoch in summary["history"]]
    }


def entries(root: Path) -> np.ndarray:
    """Size, time and CRC-32 of each stored sample; 0 of the others."""
    found = list(root.glob(".feedrate/train-*/entries"))
    return np.fromfile(found[0], dtype=np.int64) if found else np.zeros(0, dtype=np.int64)


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_in_an_epoch_it_is_wrong_in_nothing_and_the_next_run_completes_it(
    root: Path, tmp_path: Path, workers: int
) -> None:
    expected = train(root, tmp_path / "files", workers)
    assert not (root / ".feedrate").exists()
    slow = ("model=simulated", "model.step_ms=2500", "trainer.max_epochs=1", "dataset.cache=shards")
    killed = Started("train.py", *arguments(root, tmp_path / "killed", workers, *slow))
    try:
        until(lambda: bool(entries(root).any()))
        os.kill(killed.process.pid, signal.SIGKILL)
        killed.process.wait()
        until(killed.all_ended)
    finally:
        killed.close()
    before = entries(root)
    assert 0 < np.count_nonzero(before) < len(before)
    for number in range(2):
        assert train(root, tmp_path / f"run{number}", workers, "dataset.cache=shards") == expected
        assert (entries(root)[before > 0] == before[before > 0]).all()
        assert entries(root).all()


@pytest.mark.skipif(
    shutil.which("unshare") is None or os.geteuid() != 0, reason="a full disk is made with unshare and mount, as root"
)
def test_a_disk_without_room_ends_the_run_before_it_begins(digits: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    given = arguments(full, tmp_path / "run", 0, "dataset.cache=shards")
    run = " ".join([sys.executable, f"{ROOT}/src/train.py", *given])
    mount = f"mkdir {full}; mount -t tmpfs -o size=9m none {full} || exit 77"
    fill = f"cp -r {digits}/. {full} && head -c 100m /dev/zero > {full}/filler 2>/dev/null"
    script = f"{mount}; {fill}; {run}"
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip(f"mount: {done.stderr}")
    assert done.returncode == 1
    assert re.search(r"dataset\.cache=shards: .*(0\.0 MB are free|No space left)", done.stderr), done.stderr
    assert "dataset.cache=none" in done.stderr
    assert len(done.stderr.splitlines()) <= 3
