"""Small sweeps in processes of their own, with a model that fails as configured."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from started import until

ROOT = Path(__file__).resolve().parents[2]
TINY = "# @package _global_\ntrainer: {max_epochs: 1}\nloader: {batch_size: 4}\n"  # 16 steps, enough for a rate


def start(
    folder: Path, digits: Path, *arguments: str, experiment: str = TINY, many: bool = True
) -> subprocess.Popen[str]:
    """A sweep of `deadly.Net`, or a single run, with an experiment file of the user's own in `folder`."""
    own = folder / "conf/experiment/tiny.yaml"
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text(experiment)
    (folder / "notes").mkdir(exist_ok=True)
    small = [
        f"hydra.searchpath=[file://{folder}/conf]", "experiment=tiny", f"dataset.root={digits}", "dataset.limit=64",
        "loader.num_workers=0", "scheduler=none", "model=mlp", "~model.hidden", "~model.dropout",
        "model._target_=deadly.Net", f"+model.notes={folder}/notes",
    ]  # fmt: skip
    return subprocess.Popen(
        [sys.executable, str(ROOT / "src/train.py"), *(["-m"] if many else []), *small, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests/helpers")},
    )


def sweep(folder: Path, digits: Path, *arguments: str, experiment: str = TINY) -> subprocess.CompletedProcess[str]:
    """The same, when it has ended."""
    process = start(folder, digits, *arguments, experiment=experiment)
    output, errors = process.communicate(timeout=600)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def cut_power(process: subprocess.Popen[str]) -> None:
    """Kills a sweep and all that it has started, so that none of them notices another's end."""
    process.send_signal(signal.SIGSTOP)
    until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
    for child in psutil.Process(process.pid).children():
        os.killpg(child.pid, signal.SIGKILL)
    process.kill()
    process.communicate(timeout=60)
