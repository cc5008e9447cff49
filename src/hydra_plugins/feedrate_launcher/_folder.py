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


def claim(
    fresh: Path,
    sweep_id: str,
    *,
    again: bool,
    goes_on: Callable[[Mapping[str, Any]], bool] = lambda facts: facts.get("status") != "FINISHED",
) -> RunFolder:
    """Locks the folder of the interrupted sweep with this id, or a new one; of several processes one gets it.

    Args:
        fresh: folder of a new sweep; earlier ones are looked for beside it and under outputs/sweeps.
        again: begin a new sweep in any case.
        goes_on: whether to resume the newest such sweep, given its summary.json.

    Raises:
        UserError: the same sweep is running, or `fresh` holds another one.
    """
    fresh.parent.mkdir(parents=True, exist_ok=True)
    path = fresh
    try:
        with file_lock(fresh.parent / ".lock"):
            earlier = None if again else _newest(fresh, sweep_id)
            if earlier is not None and (owner := living_owner(earlier)) is not None:
                raise UserError(
                    f"this sweep is running already: process {owner}, {earlier}\n"
                    "Wait for it, or start a second one beside it with sweep.again=true"
                )
            if earlier is not None and goes_on(read_summary(earlier)):
                path = earlier
            elif read_summary(fresh):
                raise UserError(f"hydra.sweep.dir={fresh}: holds a sweep already; name a new folder")
            claimed = RunFolder(path, "hydra.sweep.dir")
            add(claimed, status="RUNNING", sweep_id=sweep_id, started=f"{datetime.now(timezone.utc):%FT%TZ}")
    except BaseException:
        discard(fresh)
        raise
    if path != fresh:
        discard(fresh)
    return claimed


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


# ---------------------------------------------------------------------------------------------------------
# Jobs of an earlier start
# ---------------------------------------------------------------------------------------------------------


def attempt(job: Job, sweep: Path) -> tuple[Path, Literal["finished", "resume", "new"]]:
    """The job's run folder, and whether the job has finished there, is to be resumed there, or begins there anew."""
    tried = _attempts(job, sweep)
    if not tried:
        return sweep / job.subfolder, "new"
    last = tried[-1]
    summary = read_summary(last)
    if summary.get("job_id") == job.job_id:
        if summary.get("status") == "FINISHED":
            return last, "finished"
        if summary.get("status") in ("RUNNING", "KILLED") and any((last / "checkpoints").glob("last*.pt")):
            return last, "resume"
    return sweep / f"{job.subfolder}_{len(tried) + 1}", "new"


def wait_for(jobs: Iterable[Job], sweep: Path) -> None:
    """Waits until the jobs of an earlier start have written their checkpoints, and marks those that left no status.

    Raises:
        UserError: one still runs after 30 s.
    """
    deadline = time.monotonic() + _ENDING_S
    for folder in [folder for job in jobs for folder in _attempts(job, sweep)]:
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


def ended_before(job: Job, sweep: Path) -> tuple[str, str]:
    """Status and error of a job that does not run again; NOT RUN if it has none."""
    tried = _attempts(job, sweep)
    summary = read_summary(tried[-1]) if tried else {}
    status = str(summary.get("status"))
    return (status, str(summary.get("error", ""))) if status in ("FAILED", "KILLED") else ("NOT RUN", "")


def _attempts(job: Job, sweep: Path) -> list[Path]:
    """The folders of a job, oldest first."""
    found: list[Path] = []
    while (following := sweep / (f"{job.subfolder}_{len(found) + 1}" if found else job.subfolder)).exists():
        found.append(following)
    return found
