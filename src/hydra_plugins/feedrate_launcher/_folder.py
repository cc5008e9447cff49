"""The folder of a sweep, new or interrupted, and what an earlier start left of its jobs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from feedrate.config import ROOT
from feedrate.errors import UserError
from feedrate.runs.run_folder import RunFolder, living_owner, read_summary
from feedrate.system.files import file_lock
from feedrate.tracking.journal import SILENT_END
from hydra_plugins.feedrate_launcher._jobs import Job

_ENDING_S = 30.0  # in which jobs whose launcher was killed write their checkpoints
_SWEEPS = ROOT / "outputs/sweeps"


def open_folder(
    fresh: Path,
    sweep_id: str,
    *,
    again: bool,
    resumes: Callable[[Mapping[str, Any]], bool] = lambda facts: facts.get("status") != "FINISHED",
) -> RunFolder:
    """Opens and locks the folder of the newest sweep with this id, or `fresh`; of several processes one gets it.

    An earlier one, beside `fresh` or under outputs/sweeps, is opened again if `resumes` says so of its summary.json,
    and not `again`. UserError: the same sweep is running, or `fresh` holds another one.
    """
    fresh.parent.mkdir(parents=True, exist_ok=True)
    opened = None
    try:
        with file_lock(fresh.parent / ".lock"):
            earlier = None if again else _newest(fresh, sweep_id)
            if earlier is not None and (owner := living_owner(earlier)) is not None:
                raise UserError(
                    f"this sweep is running already: process {owner}, {earlier}\n"
                    "Wait for it, or start a second one beside it with sweep.again=true"
                )
            if earlier is None or not resumes(read_summary(earlier)):
                earlier = None
                if read_summary(fresh):
                    raise UserError(f"hydra.sweep.dir={fresh}: holds a sweep already; name a new folder")
            opened = RunFolder(earlier or fresh, "hydra.sweep.dir")
            add(opened, status="RUNNING", sweep_id=sweep_id, started=f"{datetime.now(timezone.utc):%FT%TZ}")
        return opened
    finally:
        if opened is None or opened.path != fresh:
            discard(fresh)


def add(folder: RunFolder, **facts: Any) -> None:
    """Adds to summary.json, by which other commands find the sweep."""
    folder.write_summary({**read_summary(folder.path), **facts})


def identity(jobs: Sequence[Job]) -> str:
    """16 hexadecimal digits of the jobs in order, the place of their data, and where they are recorded."""
    tracking = jobs[0].config.tracking
    parts = [[job.job_id, job.config.dataset.get("root")] for job in jobs]
    text = json.dumps([parts, tracking.uri, tracking.experiment], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def discard(fresh: Path) -> None:
    """Removes the folder that Hydra has just created, if it holds nothing but Hydra's file."""
    with contextlib.suppress(OSError):
        if {path.name for path in fresh.iterdir()} <= {"multirun.yaml"}:
            (fresh / "multirun.yaml").unlink(missing_ok=True)
            fresh.rmdir()


def _newest(fresh: Path, sweep_id: str) -> Path | None:
    """The newest sweep of this id."""
    folders = {path.parent for root in (fresh.parent, _SWEEPS) for path in root.glob("*/summary.json")}
    found = [
        (str(facts["started"]), path) for path in folders if (facts := read_summary(path)).get("sweep_id") == sweep_id
    ]
    return max(found)[1] if found else None


def attempt(job: Job, sweep: Path) -> tuple[Path, Literal["finished", "resume", "new"]]:
    """The job's run folder, and whether the job has finished there, is to be resumed there, or starts there again."""
    tried, last, summary = _attempts(job, sweep)
    status = summary.get("status") if summary.get("job_id") == job.job_id else None
    if status == "FINISHED":
        return last, "finished"
    if status in ("RUNNING", "KILLED") and any((last / "checkpoints").glob("last*.pt")):
        return last, "resume"
    return sweep / (f"{job.subfolder}_{tried + 1}" if tried else job.subfolder), "new"


def wait_for(jobs: Iterable[Job], sweep: Path) -> None:
    """Waits until the jobs of an earlier start have written their checkpoints, and marks those that left no status."""
    deadline = time.monotonic() + _ENDING_S
    for folder in (_attempts(job, sweep)[1] for job in jobs):
        while (owner := living_owner(folder)) is not None:
            if time.monotonic() > deadline:
                raise UserError(f"{folder}: process {owner} of an earlier start still runs; end it, then start again")
            time.sleep(0.1)
        if (folder / "lock").exists():
            mark(folder, "KILLED", SILENT_END)


def mark(folder: Path, status: str, error: str) -> None:
    """Writes the status of a job that could not write it itself, and removes its lock."""
    owned = RunFolder(folder)
    if read_summary(folder).get("status") in (None, "RUNNING"):
        add(owned, status=status, error=error)
    owned.release()


def _attempts(job: Job, sweep: Path) -> tuple[int, Path, dict[str, Any]]:
    """How many folders a job has, the newest one, and its summary."""
    tried, last = 0, sweep / job.subfolder
    while (following := sweep / (f"{job.subfolder}_{tried + 1}" if tried else job.subfolder)).exists():
        tried, last = tried + 1, following
    return tried, last, read_summary(last)
