"""A sweep from its open folder to its final table: its parent run in MLflow, its jobs and their results."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig

from feedrate.config import TrainConfig
from feedrate.reporting.sweep_report import Report
from feedrate.reporting.sweep_results import Result, read_summary
from feedrate.runs.provenance import command_line
from feedrate.runs.run_folder import RunFolder, living_owner
from feedrate.system.secrets import mask_files
from feedrate.tracking.journal import JOB_TAG
from feedrate.tracking.sweep import NOTE_CHARACTERS, SweepRun, picture
from hydra_plugins.feedrate_launcher._freeze import FrozenFiles, Job
from hydra_plugins.feedrate_launcher._lock import Attempt, SweepLock, attempt, ended_before, mark, wait_for
from hydra_plugins.feedrate_launcher._running import Jobs, Next, SweepInterruption

_NOTE_CHARACTERS = 0.8 * NOTE_CHARACTERS  # of a table; the note adds to it
_TABLE_ROWS = 30  # of a table that is too long for the note


@dataclass(frozen=True, kw_only=True)
class About:
    """What a sweep is."""

    name: str  # of the parent run
    sweep_id: str  # the same for the same command
    settings: Mapping[str, str]  # what is swept -> its values as text
    config: TrainConfig  # of any job, for the groups tracking and sweep
    report: Report
    words: Callable[[Job], str]  # describes a job in the line that announces it


@dataclass
class Sweep:
    """One sweep, whose folder this process owns."""

    master: DictConfig  # the sweep's configuration
    about: About
    claimed: SweepLock
    at_once: int
    results: dict[int, Result] = field(default_factory=dict)  # of the jobs so far, by number
    _parent: SweepRun | None = None
    _stop: SweepInterruption = field(default_factory=SweepInterruption)

    @property
    def folder(self) -> Path:
        """The sweep's folder, which holds those of the jobs."""
        return self.claimed.folder.path

    @contextmanager
    def open(self, jobs: Sequence[Job]) -> Iterator[None]:
        """Opens the parent run; at the end writes table and plots and closes it, also after an error.

        `jobs` are listed in the table even if they never start. UserError: the tracking store cannot be used.
        """
        status: Literal["FINISHED", "FAILED", "KILLED"] = "KILLED"
        reason = "the sweep was interrupted"
        try:
            self._open_parent()
            yield
            if not self.stopped:
                status, reason = self.outcome
        except Exception as error:
            if not self.stopped:
                status, reason = "FAILED", str(error)
            raise
        finally:
            for job in jobs:
                if job.number not in self.results:
                    self.results[job.number] = self.result(job, *ended_before(job, self.folder))
            self._close(status, reason)

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """Signals that ask to stop are handled within it, and raised as Interrupted at its end; it encloses `open`."""
        self._stop.listen()
        try:
            yield
        except Exception:
            self._stop.check()  # an error after a signal is a result of it
            raise
        finally:
            self._stop.leave()
        self._stop.check()

    @property
    def stopped(self) -> bool:
        """Whether a signal asked to stop."""
        return self._stop.signum is not None

    @property
    def outcome(self) -> tuple[Literal["FINISHED", "FAILED"], str]:
        """Status and reason, for the jobs so far."""
        wrong = [found for found in self.results.values() if found.status not in ("FINISHED", "PRUNED")]
        return ("FAILED", f"{len(wrong)} of {len(self.results)} jobs did not finish") if wrong else ("FINISHED", "")

    def finished_before(self, job: Job) -> Mapping[str, Any]:
        """The summary of a job that an earlier start finished, with its result recorded; empty if the job must run."""
        where = attempt(job, self.folder)
        if where.state != "finished":
            return {}
        summary = read_summary(where.folder)
        self.results[job.number] = self.result(job, "FINISHED", "", summary)
        return summary

    def wait_for(self, jobs: Sequence[Job]) -> None:
        """Waits for the jobs of an earlier start that was killed; call it before `finished_before` and `run`."""
        wait_for(jobs, self.folder)

    def run(self, following: Next, ended: Callable[[Job, Result, Mapping[str, Any]], None]) -> None:
        """Runs jobs, within `open`; calls `ended` with each one, its result, and its summary if it finished."""
        files = FrozenFiles(self.master, self.folder)
        parent = self._parent.reference if self._parent is not None else None
        running = Jobs(self.at_once, files, self.folder, parent, self._stop, self.about.words)

        def record(job: Job, where: Attempt, status: str, error: str) -> None:
            summary = read_summary(where.folder) if status == "FINISHED" else {}
            found = self.results[job.number] = self.result(job, status, error, summary)
            if status in ("FAILED", "KILLED"):
                print(f"job {job.number} {status}: {error}", file=sys.stderr, flush=True)
                mark(where.folder, status, error)
                self._mark(job, where.folder, status, error)
                if self.about.config.sweep.fail_fast:
                    running.start_no_more()
            ended(job, found, summary)
            self._note()

        running.run(following, record)

    def result(self, job: Job, status: str, error: str, summary: Mapping[str, Any] | None = None) -> Result:
        """A job's row of the table, with the figures of its summary."""
        if summary and summary.get("pruned"):
            status = "PRUNED"
        measured = self.about.report.measured(summary) if summary else {}
        return Result(
            number=job.number, settings=job.settings, command=job.command, status=status, error=error, **measured
        )

    def _open_parent(self) -> None:
        """Creates the store before the first job, which would otherwise compete for it with others."""
        mask_files(self.folder)  # multirun.yaml holds the overrides
        if self.about.config.tracking.uri is None:
            return
        typed = [str(override) for override in self.master.hydra.overrides.task]
        self._parent = SweepRun(
            self.about.config.tracking,
            self.about.name,
            self.folder,
            settings=self.about.settings,
            tags={"feedrate.sweep_id": self.about.sweep_id, "feedrate.command": command_line(["-m", *typed])},
            owned=lambda path: living_owner(path) is not None,
        )

    def _mark(self, job: Job, folder: Path, status: str, error: str) -> None:
        if self._parent is not None:
            tags = {"feedrate.command": job.command, JOB_TAG: str(job.number)}
            self._parent.mark(folder, "KILLED" if status == "KILLED" else "FAILED", error, tags)

    def _note(self, pictures: str = "") -> None:
        """Writes the table so far, for a sweep that is killed."""
        if self._parent is None:
            return
        report, results = self.about.report, self._ordered()
        best = report.best(results)
        link = self._parent.job_link("best job", best.run_id) if best is not None else ""
        pictures = "\n\n".join(filter(None, [link, pictures]))
        text = report.table(results, pictures=pictures)
        self._parent.note(
            text if len(text) < _NOTE_CHARACTERS else report.table(results, rows=_TABLE_ROWS, pictures=pictures)
        )

    def _close(self, status: Literal["FINISHED", "FAILED", "KILLED"], reason: str) -> None:
        """Writes table and plots to the terminal, the sweep's folder and the parent run, and closes it."""
        try:
            if any(found.status != "NOT RUN" for found in self.results.values()):
                paths = self.about.report.write(self._ordered(), self.folder)
                print(f"\n{paths[0].read_text(encoding='utf-8')}\nsweep folder  {self.folder}", flush=True)
                if self._parent is not None:
                    self._note(" ".join(picture(p.name) for p in paths if p.suffix == ".png"))
                    for path in paths:
                        self._parent.tracker.artifact(path)
                    if (best := self.about.report.best(self._ordered())) is not None:
                        self._parent.best(best.settings, best.metrics)
        finally:
            if self._parent is not None:
                tracker = self._parent.tracker
                tracker.end(status, reason)
                if tracker.url is not None:
                    print(f"this sweep    {tracker.url}\nall runs      {tracker.experiment_url}", flush=True)
                self.claimed.write(run_id=tracker.run_id)
            self.claimed.write(status=status, error=reason)
            self.claimed.folder.release()

    def _ordered(self) -> list[Result]:
        return [self.results[number] for number in sorted(self.results)]


def claimed_again(sweep: Sweep) -> Sweep:
    """The same sweep for a further batch of jobs, with its folder locked again."""
    sweep.claimed = SweepLock(folder=RunFolder(sweep.folder), facts=read_summary(sweep.folder))
    sweep.claimed.write(status="RUNNING")
    return sweep
