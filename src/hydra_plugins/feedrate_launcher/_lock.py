"""The folder of a sweep, new or interrupted, and what an earlier start left of its jobs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from feedrate.config import ROOT
from feedrate.errors import UserError
from feedrate.runs.provenance import changes, command_line
from feedrate.runs.run_folder import RunFolder, living_owner, read_summary
from feedrate.system.atomic_write import atomic_write
from feedrate.system.folder import file_lock
from feedrate.system.secrets import masked
from feedrate.system.text import flatten
from feedrate.tracking.journal import SILENT_END
from hydra_plugins.feedrate_launcher._freeze import Job

_ENDING_S = 30.0  # in which jobs whose launcher was killed write their checkpoints
_SWEEPS = ROOT / "outputs/sweeps"
_OF_ONE_START = (  # keys that do not make a sweep another one
    "trainer.resume", "sweep.", "tracking.artifacts", "tracking.log_model", "tracking.system_metrics",
    "tracking.run_name",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SweepLock:
    """A sweep's folder, owned by this process."""

    folder: RunFolder
    facts: Mapping[str, Any]  # summary.json of the earlier start; empty for a new sweep

    def write(self, **facts: Any) -> None:
        """Adds to summary.json, by which other commands find the sweep."""
        _add_to_summary(self.folder.path, facts)


def claim(
    fresh: Path,
    sweep_id: str,
    *,
    again: bool,
    goes_on: Callable[[Mapping[str, Any]], bool] = lambda facts: facts.get("status") != "FINISHED",
) -> SweepLock:
    """Locks the folder of the interrupted sweep with this id, or a new one; of several processes one gets it.

    Args:
        fresh: folder of a new sweep; earlier ones are looked for beside it and under outputs/sweeps.
        sweep_id: the same for the same command.
        again: begin a new sweep in any case.
        goes_on: whether to resume the newest such sweep, given its summary.json.

    Raises:
        UserError: the same sweep is running, or `fresh` holds another one.
    """
    fresh.parent.mkdir(parents=True, exist_ok=True)
    try:
        with file_lock(fresh.parent / ".lock"):
            earlier = None if again else _with(fresh, "sweep_id", sweep_id)
            if earlier is not None and (owner := living_owner(earlier)) is not None:
                raise UserError(
                    f"this sweep is running already: process {owner}, {earlier}\n"
                    "Wait for it, or start a second one beside it with sweep.again=true"
                )
            if earlier is not None and goes_on(facts := read_summary(earlier)):
                claimed = SweepLock(folder=RunFolder(earlier, "hydra.sweep.dir"), facts=facts)
            elif read_summary(fresh):
                raise UserError(f"hydra.sweep.dir={fresh}: holds a sweep already; name a new folder")
            else:
                claimed = SweepLock(folder=RunFolder(fresh, "hydra.sweep.dir"), facts={})
            claimed.write(status="RUNNING", sweep_id=sweep_id, started=f"{datetime.now(timezone.utc):%FT%TZ}")
    except BaseException:
        discard(fresh)
        raise
    if claimed.folder.path != fresh:
        discard(fresh)
    return claimed


def identity(jobs: Sequence[Job]) -> str:
    """16 hexadecimal digits of the jobs in order, the place of their data, and where they are recorded."""
    tracking = jobs[0].config.tracking
    parts = [[job.job_id, job.config.dataset.get("root")] for job in jobs]
    text = json.dumps([parts, tracking.uri, tracking.experiment], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def description(jobs: Sequence[Job], overrides: Sequence[str]) -> dict[str, Any]:
    """The command of a sweep (its overrides as typed) and the settings behind its identity, for summary.json."""
    typed = [override for override in overrides if not override.startswith("sweep.")]
    values: dict[str, list[str]] = {}
    for job in jobs:
        for key, value in flatten(asdict(job.config)).items():
            if not key.startswith(_OF_ONE_START):
                values.setdefault(key, []).append(str(value))
    settings = {key: ", ".join(dict.fromkeys(of_jobs)) for key, of_jobs in values.items()}
    return {"command": command_line(["-m", *typed]), "settings": masked(settings)}


def changed_since(fresh: Path, present: Mapping[str, Any]) -> str:
    """Which settings of the sweep described by `present` differ from an unfinished one of the same command, or ''."""
    found = _with(fresh, "command", present["command"])
    if found is None or found == fresh or living_owner(found) is not None:
        return ""
    facts = read_summary(found)
    if facts.get("status") == "FINISHED":
        return ""
    changed = changes(facts.get("settings") or {}, present["settings"]) or "its jobs were others"
    return f"{found} is an unfinished sweep of this command, but its configuration was another: {changed}"


def _with(fresh: Path, key: str, value: Any) -> Path | None:
    """The newest sweep beside `fresh` or under outputs/sweeps whose summary.json has this value."""
    found = [
        (str(facts["started"]), path.parent)
        for root in {fresh.parent, _SWEEPS}
        for path in root.glob("*/summary.json")
        if (facts := read_summary(path.parent)).get(key) == value
    ]
    return max(found)[1] if found else None


def discard(fresh: Path) -> None:
    """Removes the folder that Hydra has just created, if it holds nothing but Hydra's file."""
    with contextlib.suppress(OSError):
        if {path.name for path in fresh.iterdir()} <= {"multirun.yaml"}:
            (fresh / "multirun.yaml").unlink(missing_ok=True)
            fresh.rmdir()


# ---------------------------------------------------------------------------------------------------------
# Jobs of an earlier start
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attempt:
    """What to do for a job."""

    folder: Path  # the job's run folder
    state: Literal["finished", "resume", "new"]  # before; from the checkpoint in the folder; in a folder to be created


def attempt(job: Job, sweep: Path) -> Attempt:
    """Keeps a finished job, resumes an interrupted one, and repeats a failed one in a new folder."""
    tried = _attempts(job, sweep)
    if not tried:
        return Attempt(sweep / job.subfolder, "new")
    last = tried[-1]
    summary = read_summary(last)
    if summary.get("job_id") == job.job_id:
        if summary.get("status") == "FINISHED":
            return Attempt(last, "finished")
        saved = (last / "checkpoints").glob("last*.pt")
        # a file cut short is no zip; the job itself checks further, and falls back to an earlier checkpoint
        if summary.get("status") in ("RUNNING", "KILLED") and any(zipfile.is_zipfile(path) for path in saved):
            return Attempt(last, "resume")
    return Attempt(sweep / f"{job.subfolder}_{len(tried) + 1}", "new")


def wait_for(jobs: Iterable[Job], sweep: Path) -> None:
    """Waits until the jobs of an earlier start have written their checkpoints, and marks those that left no status.

    Raises:
        UserError: one still runs after 30 s.
    """
    deadline = time.monotonic() + _ENDING_S
    folders = [folder for job in jobs for folder in _attempts(job, sweep)]
    waiting = False
    for folder in folders:
        while (owner := living_owner(folder)) is not None:
            if time.monotonic() > deadline:
                raise UserError(f"{folder}: process {owner} of an earlier start still runs; end it, then start again")
            if not waiting:
                print("waiting for the jobs of the earlier start to write their checkpoints", flush=True)
            waiting = True
            time.sleep(0.1)
    for folder in folders:
        if (folder / "lock").exists():
            mark(folder, "KILLED", SILENT_END)


def mark(folder: Path, status: str, error: str) -> None:
    """Writes the status of a job that could not write it itself, and removes its lock."""
    folder.mkdir(parents=True, exist_ok=True)
    if read_summary(folder).get("status") in (None, "RUNNING"):
        _add_to_summary(folder, {"status": status, "error": error})
    (folder / "lock").unlink(missing_ok=True)


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


def _add_to_summary(folder: Path, facts: Mapping[str, Any]) -> None:
    atomic_write(folder / "summary.json", json.dumps({**read_summary(folder), **facts}, indent=2, default=str))
