"""A sweep's own run, the parent of its jobs' runs: begun before the first job, closed after the last.

It is recorded as any run is, through a journal in the sweep's folder and a uploader; jobs record themselves, and learn
of their parent through the environment (PARENT_VARIABLE, JOB_VARIABLE).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from feedrate.config import shown_path
from feedrate.system.secrets import masked, without_secrets
from feedrate.tracking.journal import JOURNAL, Delivered, Journal, SweepLock, events
from feedrate.tracking.point import points
from feedrate.tracking.tracker import Tracker, open_tracker

if TYPE_CHECKING:
    from feedrate.config import TrackingConfig

PARENT_VARIABLE, JOB_VARIABLE = "FEEDRATE_PARENT_RUN", "FEEDRATE_JOB"
JOB_TAG = "feedrate.job"
PARENT_TAG, PARENT_JOURNAL = "mlflow.parentRunId", "journal:"  # the latter before the folder of the parent's journal
RUN_ID = "{run_id}"  # stands in a note for the run's id in MLflow, which is not known before the store has answered
NOTE_CHARACTERS = 8000  # MLflow's limit of a tag
_COURIER_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a sweep is to do.

    Attributes:
        name: of the parent run.
        sweep_id: hash of the set of jobs; the same command has the same.
        command: starts the sweep again; without secrets.
        folder: the sweep's folder; one with a journal is gone on with, in the same run.
        settings: swept key -> its values in words.
    """

    name: str
    sweep_id: str
    command: str
    folder: Path
    settings: Mapping[str, str]


def open_sweep(config: TrackingConfig, plan: Plan, *, owned: Callable[[Path], bool]) -> SweepRun:
    """The parent run; a store that is away costs a note, and the record is sent when it is back.

    Args:
        config: the group `tracking`, with a `uri`.
        owned: whether a living process owns this run folder.

    Raises:
        UserError: the store can never be used.
    """
    own = replace(config, system_metrics=False, log_model=False, run_name=None)
    goes_on = (plan.folder / JOURNAL).exists()
    tracker = open_tracker(own, run_name=plan.name, run_folder=plan.folder)
    if not goes_on:
        tracker.tags({"feedrate.sweep_id": plan.sweep_id, "feedrate.command": plan.command})
        tracker.params(plan.settings)
    for journal in sorted(plan.folder.glob(f"*/{JOURNAL}")):  # of jobs whose uploaders ended too
        if Delivered.read(journal.parent).status in ("", "RUNNING") and not owned(journal.parent):
            tracker.close_dead(journal.parent)
    return SweepRun(tracker, config, plan.folder)


class SweepRun:
    """The parent run, open until `end`."""

    def __init__(self, tracker: Tracker, config: TrackingConfig, folder: Path) -> None:
        self._tracker, self._config, self._folder = tracker, config, folder

    @property
    def reference(self) -> str:
        """What a job's environment names its parent by."""
        return f"{PARENT_JOURNAL}{self._folder}"

    @property
    def run_id(self) -> str | None:
        """MLflow's, None while the store has not answered."""
        return self._tracker.run_id

    @property
    def url(self) -> str | None:
        """Link to the parent run's page, None as `run_id`."""
        return self._tracker.url

    @property
    def experiment_url(self) -> str | None:
        """Link to the table of runs, None as `run_id`."""
        return self._tracker.experiment_url

    def mark(self, folder: Path, status: Literal["FAILED", "KILLED"], error: str, plain: Mapping[str, str]) -> None:
        """Sees to it that a job that did not end well has a run that says so.

        Args:
            folder: the job's run folder.
            status: what became of it; a job that has said its own end is left alone.
            error: why.
            plain: tags of the run that is made where the job ended before it had one.
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
        """Sets the description that the parent's page begins with."""
        lines = markdown.splitlines()
        # MLflow's pages leave no space between a table's columns
        spaced = "\n".join(line.replace(" |", "\u00a0\u00a0|") if line.startswith("| ") else line for line in lines)
        self._tracker.note(spaced)

    def picture(self, name: str) -> str:
        """Markdown that shows an artifact in the note; MLflow's pages serve it beside themselves."""
        return f"![{name}](get-artifact?path={name}&run_uuid={RUN_ID})"

    def best(self, settings: str, metrics: Mapping[str, float]) -> None:
        """Makes the parent's row in the table of runs that of its best job.

        Args:
            settings: of that job, in words.
            metrics: its figures, under the names that single runs use.
        """
        self._tracker.tags({"feedrate.best": settings})
        self._tracker.metrics(points(dict(metrics), 0))

    def artifact(self, path: Path) -> None:
        """Keeps a copy of a file on the parent."""
        self._tracker.artifact(path)

    def end(self, status: Literal["FINISHED", "FAILED", "KILLED"], error: str = "") -> None:
        """Closes the parent; waits for the store as a run does."""
        self._tracker.end(status, error)


def sweep_tags() -> dict[str, str]:
    """Tags of a run that a sweep has started as one of its jobs; empty for any other run."""
    parent = os.environ.get(PARENT_VARIABLE)
    return {PARENT_TAG: parent, JOB_TAG: os.environ.get(JOB_VARIABLE, "")} if parent else {}


def _wait_for_uploader(folder: Path) -> None:
    """Until the uploader of a job that has ended lets go of its journal, so that what is added is carried after it."""
    deadline = time.monotonic() + _COURIER_S
    while (folder / JOURNAL).exists() and time.monotonic() < deadline:
        try:
            SweepLock(folder).release()
        except BlockingIOError:
            time.sleep(0.05)
        else:
            return
