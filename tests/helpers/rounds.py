"""Many runs that start in the same instant on a database that is not there yet. For soak.py and its short form."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kills import start_training


def rounds_at_once(work: Path, data: Path, rounds: int, at_once: int, say: Callable[[str], Any] = print) -> list[str]:
    """Each round starts so many runs with a fresh database; what was not FINISHED and complete, in words."""
    faults = []
    for number in range(1, rounds + 1):
        folder = work / f"round{number}"
        folder.mkdir(parents=True)
        tracking = [
            f"tracking.uri={folder}/mlflow.db",
            f"tracking.artifacts={folder}/artifacts",
            "tracking.system_metrics=false",
        ]
        data_set = [f"dataset.root={data}", "dataset.limit=64"]
        small = [*data_set, "model=mlp", "trainer.max_epochs=1", "loader.num_workers=0"]
        started = {
            place: start_training(place, *tracking, *small, f"seed={index}")
            for index in range(at_once)
            for place in [folder / f"run{index}"]
        }
        for place, process in started.items():
            if process.wait(timeout=600):
                faults.append(f"{place}: exit code {process.returncode}\n{place.with_suffix('.out').read_text()}")
        with sqlite3.connect(folder / "mlflow.db") as database:
            rows = database.execute(
                "SELECT status, (SELECT count(*) FROM metrics WHERE run_uuid = runs.run_uuid AND key = 'train/loss')"
                " FROM runs"
            ).fetchall()
        complete = sum(row == ("FINISHED", 1) for row in rows)
        if complete != at_once or len(rows) != at_once:
            faults.append(f"{folder}: of {at_once} runs {len(rows)} are recorded, {complete} completely: {rows}")
        say(f"round {number:2d}: {complete} of {at_once} runs FINISHED with their metrics")
    return faults
