"""How long one waits before anything happens: for the help, an error, the first batch, a whole short run, a comparison.

A sentence below the table says whether a sweep's jobs have imported torch._dynamo, which takes seconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from figures import markdown, spread

from feedrate.cli.launch import FROM_STDIN

ROOT = Path(__file__).resolve().parents[1]
REPEATS = 5
MISTYPED = "loader.num_wokers=8"
# imported by each Python process at its start; at the end of a sweep's job it writes down what was imported
SITE = f"""
import atexit, os, pathlib, sys

def note():
    if sys.argv[1:] == ["{FROM_STDIN}"]:
        path = pathlib.Path(os.environ["NOTES"], str(os.getpid()))
        path.write_text(str("torch._dynamo.utils" in sys.modules))  # a stand-in is named torch._dynamo

atexit.register(note)
"""


def run() -> str:
    with tempfile.TemporaryDirectory() as folder:
        store = [f"tracking.uri={folder}/mlflow.db", f"tracking.artifacts={folder}/artifacts"]
        short = ["trainer.max_epochs=1", *store]
        runs = [_timed("train.py", *short)[1] for _ in range(2)]  # writes data and database, fills the page cache
        folders, ids = [run["folder"] for run in runs], [run["run_id"] for run in runs]
        cases = {
            "`train.py --help`": ["train.py", "--help"],
            "`train.py`, a mistyped key": ["train.py", MISTYPED],
            "`train.py`, one epoch on the digits, `tracking=none`": ["train.py", "tracking=none", short[0]],
            "`train.py`, one epoch on the digits, recorded": ["train.py", *short],
            "`compare.py FOLDER FOLDER`": ["compare.py", *folders, "--uri", f"{folder}/mlflow.db"],
            "`compare.py ID ID`": ["compare.py", *ids, "--uri", f"{folder}/mlflow.db"],
        }
        times: dict[str, list[float]] = {name: [] for name in cases}
        first: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(REPEATS):
            for name, arguments in cases.items():
                seconds, summary = _timed(*arguments)
                times[name].append(seconds)
                if summary:
                    first[name].append(summary["first_batch_after_start_s"])
        imported = _jobs_with_dynamo(Path(folder))
        rows = [(name, spread(times[name]), spread(first[name]) if first[name] else "-") for name in cases]
    table = markdown(["`python src/...`", "whole command, s", "from its start to the first batch, s"], rows)
    dynamo = f"{sum(imported)} of the {len(imported)} jobs of a sweep had imported torch._dynamo when they ended."
    return f"{table}\n\n{dynamo}"


def _timed(program: str, *arguments: str) -> tuple[float, dict[str, Any]]:
    """Seconds of a command; summary.json of the run that it made, with its folder."""
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, str(ROOT / "src" / program), *arguments], capture_output=True, text=True)
    seconds = time.perf_counter() - begin
    assert done.returncode == (MISTYPED in arguments), done.stderr
    found = [line.split(None, 2)[2] for line in done.stdout.splitlines() if line.startswith("run folder")]
    if not found:
        return seconds, {}
    return seconds, {**json.loads((Path(found[0]) / "summary.json").read_text()), "folder": found[0]}


def _jobs_with_dynamo(folder: Path) -> list[bool]:
    """For each job of a sweep, whether it had imported torch._dynamo at its end."""
    notes = folder / "notes"
    notes.mkdir()
    (folder / "site").mkdir()
    (folder / "site/sitecustomize.py").write_text(SITE)
    overrides = ["-m", "seed=0,1", "tracking=none", "trainer.max_epochs=1", f"hydra.sweep.dir={folder}/sweep"]
    environment = {**os.environ, "PYTHONPATH": str(folder / "site"), "NOTES": str(notes)}
    subprocess.run([sys.executable, str(ROOT / "src/train.py"), *overrides], env=environment, check=True,
                   capture_output=True)  # fmt: skip
    return [path.read_text() == "True" for path in notes.iterdir()]
