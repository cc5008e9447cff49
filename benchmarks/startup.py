"""How long one waits before anything happens: for the help, an error, the first batch, a whole short run."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from figures import markdown, spread

ROOT = Path(__file__).resolve().parents[1]
REPEATS = 5


def run() -> str:
    with tempfile.TemporaryDirectory() as folder:
        store = [f"tracking.uri={folder}/mlflow.db", f"tracking.artifacts={folder}/artifacts"]
        cases = {
            "`--help`": ["--help"],
            "a mistyped key": ["loader.num_wokers=8"],
            "one epoch on the digits, `tracking=none`": ["tracking=none", "trainer.max_epochs=1"],
            "one epoch on the digits, recorded": [*store, "trainer.max_epochs=1"],
        }
        _timed([*store, "trainer.max_epochs=1"])  # writes data and database, fills the page cache
        times: dict[str, list[float]] = {name: [] for name in cases}
        first: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(REPEATS):
            for name, arguments in cases.items():
                seconds, summary = _timed(arguments)
                times[name].append(seconds)
                if summary:
                    first[name].append(summary["first_batch_after_start_s"])
        rows = [(name, spread(times[name]), spread(first[name]) if first[name] else "-") for name in cases]
    return markdown(["`python src/train.py` with", "whole command, s", "from its start to the first batch, s"], rows)


def _timed(arguments: list[str]) -> tuple[float, dict[str, float]]:
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, str(ROOT / "src/train.py"), *arguments], capture_output=True, text=True)
    seconds = time.perf_counter() - begin
    folder = [line.split(None, 2)[2] for line in done.stdout.splitlines() if line.startswith("run folder")]
    return seconds, json.loads((Path(folder[0]) / "summary.json").read_text()) if folder else {}
