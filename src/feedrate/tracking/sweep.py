"""A sweep's own run, the parent of its jobs' runs: begun before the first job, closed after the last.

It has a journal in the sweep's folder and an uploader, as any run. Jobs record themselves; they learn of their parent
through the environment (PARENT_VARIABLE, JOB_VARIABLE of tracker.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
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
    UploadState,
    events,
    lock_journal,
)
from feedrate.tracking.tracker import open_tracker

if TYPE_CHECKING:
    from feedrate.config import TrackingConfig

_UPLOADER_S = 10.0  # for the uploader of a job that has ended, so that what is added is sent after it


class SweepRun:
    """The parent run, which `tracker` records until it is ended; a folder with a journal is resumed, in the same run.

    `settings` are the swept keys with their values in words; `owned` says whether a living process owns a job's folder.
    Raises UserError if the configuration is wrong. A store that is away is a note.
    """

    def __init__(
        self,
        config: TrackingConfig,
        name: str,
        folder: Path,
        settings: Mapping[str, str],
        tags: Mapping[str, str],
        owned: Callable[[Path], bool],
    ) -> None:
        self._config = config
        self.reference = f"{PARENT_JOURNAL}{folder}"  # names the run in a job's environment
        resumed = (folder / JOURNAL).exists()
        own = replace(config, system_metrics=False, log_model=False, run_name=None)
        self.tracker = open_tracker(own, run_name=name, run_folder=folder)
        if not resumed:
            self.tracker.tags(tags)
            self.tracker.params(settings)
        for journal in sorted(folder.glob(f"*/{JOURNAL}")):
            if UploadState.read(journal.parent).alive and not owned(journal.parent):
                self.tracker.close_dead(journal.parent)

    def mark(self, folder: Path, status: Literal["FAILED", "KILLED"], error: str, plain: Mapping[str, str]) -> None:
        """Records a job that did not end well, unless it has done so itself; `plain`: tags if it has no record yet."""
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(JournalBusy):
            lock_journal(folder, _UPLOADER_S).close()
        recorded = [event["event"] for event, _ in events(folder / JOURNAL)]
        if "end" not in recorded[-1:]:
            journal = Journal(folder)
            if not recorded:
                tags = {PARENT_TAG: self.reference, "feedrate.run_folder": shown_path(folder), **plain}
                journal.begin(f"job {plain[JOB_TAG]}", masked(tags), self._config)
            journal.write("end", status=status, error=without_secrets(error))
        self.tracker.close_dead(folder)

    def note(self, markdown: str) -> None:
        """Sets the description at the top of the parent's page."""
        lines = markdown.splitlines()
        # MLflow's pages leave no space between a table's columns
        self.tracker.note("\n".join(one.replace(" |", "\u00a0\u00a0|") if one[:2] == "| " else one for one in lines))

    def job_link(self, text: str, run_id: str | None) -> str:
        """Markdown that links a job's run; empty where its run or this one is not known in MLflow yet."""
        url, own = self.tracker.url, self.tracker.run_id
        return f"[{text}](#{url.partition('#')[2].replace(own, run_id)})" if url and own and run_id else ""

    def best(self, settings: str, metrics: Mapping[str, float]) -> None:
        """Gives the parent's row in the table of runs the settings (in words) and metrics of its best job."""
        self.tracker.tags({"feedrate.best": settings})
        self.tracker.metrics(metrics, 0)


def picture(path: str) -> str:
    """Markdown for a run's note that shows one of the run's artifacts."""
    return f"![{path}](get-artifact?path={path}&run_uuid={RUN_ID})"
