"""A sweep's own run, the parent of its jobs' runs: begun before the first job, closed after the last.

It has a journal in the sweep's folder and an uploader, as any run. Jobs record themselves; they learn of their parent
through the environment (PARENT_VARIABLE, JOB_VARIABLE of tracker.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from feedrate.config import shown_path
from feedrate.system.secrets import masked, without_secrets
from feedrate.tracking.journal import (
    JOB_TAG,
    JOURNAL,
    PARENT_JOURNAL,
    PARENT_TAG,
    RUN_ID,
    Journal,
    JournalBusy,
    JournalLock,
    UploadState,
    events,
)
from feedrate.tracking.point import points
from feedrate.tracking.tracker import Tracker, open_tracker

if TYPE_CHECKING:
    from feedrate.config import TrackingConfig

NOTE_CHARACTERS = 8000  # MLflow's limit of a tag
_UPLOADER_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a sweep is to do.

    Attributes:
        name: of the parent run.
        sweep_id: hash of the set of jobs; the same for the same command.
        command: starts the sweep again; without secrets.
        folder: the sweep's folder; one with a journal is resumed, in the same run.
        settings: swept key -> its values in words.
    """

    name: str
    sweep_id: str
    command: str
    folder: Path
    settings: Mapping[str, str]


def open_sweep(config: TrackingConfig, plan: Plan, *, owned: Callable[[Path], bool]) -> SweepRun:
    """Opens the parent run.

    Args:
        config: the group `tracking`, with a `uri`.
        owned: whether a living process owns this run folder.

    Raises:
        UserError: the settings are wrong. A store that is away is a note.
    """
    own = replace(config, system_metrics=False, log_model=False, run_name=None)
    resumed = (plan.folder / JOURNAL).exists()
    tracker = open_tracker(own, run_name=plan.name, run_folder=plan.folder)
    if not resumed:
        tracker.tags({"feedrate.sweep_id": plan.sweep_id, "feedrate.command": plan.command})
        tracker.params(plan.settings)
    for journal in sorted(plan.folder.glob(f"*/{JOURNAL}")):
        if UploadState.read(journal.parent).alive and not owned(journal.parent):
            tracker.close_dead(journal.parent)
    return SweepRun(tracker, config, plan.folder)


class SweepRun:
    """The parent run, open until `end`. `run_id`, `url` and `experiment_url` are those of its tracker."""

    def __init__(self, tracker: Tracker, config: TrackingConfig, folder: Path) -> None:
        self._tracker, self._config, self._folder = tracker, config, folder
        self.reference = f"{PARENT_JOURNAL}{folder}"  # names the parent in a job's environment
        self.artifact, self.end = tracker.artifact, tracker.end

    @property
    def run_id(self) -> str | None:
        return self._tracker.run_id

    @property
    def url(self) -> str | None:
        return self._tracker.url

    @property
    def experiment_url(self) -> str | None:
        return self._tracker.experiment_url

    def mark(self, folder: Path, status: Literal["FAILED", "KILLED"], error: str, plain: Mapping[str, str]) -> None:
        """Records a job that did not end well, unless it has recorded its end itself.

        Args:
            folder: the job's run folder.
            plain: tags of the run that is created where the job ended before it had one.
        """
        _wait_for_uploader(folder)
        folder.mkdir(parents=True, exist_ok=True)
        last = ""
        for event, _ in events(folder / JOURNAL):
            last = event["event"]
        if last != "end":
            journal = Journal(folder)
            if not last:
                tags = {PARENT_TAG: self.reference, "feedrate.run_folder": shown_path(folder), **plain}
                journal.begin(f"job {plain[JOB_TAG]}", masked(tags), self._config)
            journal.write("end", status=status, error=without_secrets(error))
        self._tracker.close_dead(folder)

    def note(self, markdown: str) -> None:
        """Sets the description at the top of the parent's page."""
        lines = markdown.splitlines()
        # MLflow's pages leave no space between a table's columns
        spaced = "\n".join(line.replace(" |", "\u00a0\u00a0|") if line.startswith("| ") else line for line in lines)
        self._tracker.note(spaced)

    def job_link(self, text: str, run_id: str | None) -> str:
        """Markdown that links a job's run; empty where its run or this one is not known in MLflow yet."""
        if self.url is None or self.run_id is None or run_id is None:
            return ""
        return f"[{text}](#{self.url.partition('#')[2].replace(self.run_id, run_id)})"

    def best(self, settings: str, metrics: Mapping[str, float]) -> None:
        """Gives the parent's row in the table of runs the settings (in words) and metrics of its best job."""
        self._tracker.tags({"feedrate.best": settings})
        self._tracker.metrics(points(dict(metrics), 0))


def picture(path: str) -> str:
    """Markdown for a run's note that shows one of the run's artifacts."""
    return f"![{path}](get-artifact?path={path}&run_uuid={RUN_ID})"


def _wait_for_uploader(folder: Path) -> None:
    """Waits until the uploader of a job that has ended releases its journal, so that what is added is sent after it."""
    deadline = time.monotonic() + _UPLOADER_S
    while (folder / JOURNAL).exists() and time.monotonic() < deadline:
        with suppress(JournalBusy):
            return JournalLock(folder).release()
        time.sleep(0.05)
