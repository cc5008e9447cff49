"""A sweep from its folder to its final table: its parent run in MLflow, its running jobs and their results."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig

from feedrate.cli.launch import FROM_STDIN, FULL_ERROR
from feedrate.config import TrainConfig
from feedrate.errors import UserError
from feedrate.reporting.report import Report
from feedrate.reporting.results import JobResult
from feedrate.runs.provenance import command_line
from feedrate.runs.run_folder import RunFolder, living_owner, read_summary
from feedrate.system.secrets import mask_files
from feedrate.system.signals import Interruption
from feedrate.system.text import in_columns
from feedrate.tracking.journal import JOB_TAG
from feedrate.tracking.sweep import SweepRun, picture
from feedrate.tracking.tracker import JOB_VARIABLE, PARENT_VARIABLE, Tracker
from hydra_plugins.feedrate_launcher._folder import add, attempt, mark
from hydra_plugins.feedrate_launcher._jobs import Job
from hydra_plugins.feedrate_launcher._process import GPUS, JobProcess, outcome, visible_gpus

_GRACE_S = 10.0  # from a signal until the running jobs are killed, in which they write checkpoints
_POLL_S = 0.05
_NOTE_ROWS = 30  # of the table in the parent's note, which MLflow limits


@dataclass(kw_only=True)
class Sweep:
    """One sweep, whose folder this process owns."""

    master: DictConfig  # the sweep's configuration
    folder: RunFolder  # holds those of the jobs
    at_once: int
    name: str  # of the parent run
    settings: Mapping[str, str]  # what is swept -> its values as text
    config: TrainConfig  # of any job, for the groups tracking and sweep
    report: Report
    words: Callable[[Job], str]  # describes a job in the line that announces it
    results: dict[int, JobResult] = field(default_factory=dict)  # of the jobs so far, by number

    def __post_init__(self) -> None:
        self._parent: SweepRun | None = None
        action = f"the running jobs write a checkpoint, for at most {_GRACE_S:.0f} s"
        self._stop = Interruption(action=action, patience_s=None)  # the table is written after the jobs

    @contextmanager
    def open(self, jobs: Sequence[Job] = ()) -> Iterator[None]:
        """Opens the parent run; at the end writes table and plots and closes it, also after an error or a signal.

        `jobs` are listed in the table even if they never start. Raises UserError at the end where a job failed.
        """
        status: Literal["FINISHED", "FAILED", "KILLED"] = "KILLED"
        reason = "the sweep was interrupted"
        self._stop.listen()
        try:
            self._open_parent()
            yield
            if not self.stopped:
                wrong = [found for found in self.results.values() if found.status not in ("FINISHED", "PRUNED")]
                status = "FAILED" if wrong else "FINISHED"
                reason = f"{len(wrong)} of {len(self.results)} jobs did not finish" if wrong else ""
        except Exception as error:
            self._stop.check()  # an error after a signal is a result of it
            status, reason = "FAILED", str(error)
            raise
        finally:
            for job in jobs:
                self.results.setdefault(job.number, self.result(job, "NOT RUN", ""))
            self._close(status, reason)
            self._stop.leave()
        self._stop.check()
        if reason:
            raise UserError(f"{reason}; the table says why, and the same command tries them again")

    @property
    def stopped(self) -> bool:
        """Whether a signal has requested a stop."""
        return self._stop.signum is not None

    def finished_before(self, job: Job) -> Mapping[str, Any]:
        """The summary of a job that an earlier start finished, with its result recorded; empty if the job must run."""
        folder, state = attempt(job, self.folder.path)
        if state != "finished":
            return {}
        summary = read_summary(folder)
        self.results[job.number] = self.result(job, "FINISHED", "", summary)
        return summary

    def run(
        self, jobs: Iterator[Job], ended: Callable[[Job, JobResult, Mapping[str, Any]], None] = lambda *_: None
    ) -> None:
        """Runs jobs, within `open`; calls `ended` with each one, its result, and its summary if it finished."""
        running: dict[int, tuple[Job, Path, JobProcess]] = {}
        gpus = visible_gpus() if self.at_once > 1 else []
        gpu_of: dict[int, str] = {}  # of the running jobs
        kill_at, more = 0.0, True
        try:
            while True:
                while more and not self.stopped and len(running) < self.at_once and (job := next(jobs, None)):
                    environment = self._environment(job)
                    if len(gpus) > 1 and job.config.trainer.device in ("auto", "cuda"):
                        used = Counter(gpu_of.values())
                        environment[GPUS] = gpu_of[job.number] = min(gpus, key=lambda gpu: used[gpu])
                    running[job.number] = self._start(job, environment)
                if not running:
                    return
                if self.stopped:
                    if not kill_at:
                        kill_at = time.monotonic() + _GRACE_S
                        _send(running, self._stop.signum)
                    if time.monotonic() > kill_at:
                        _send(running, signal.SIGKILL)
                time.sleep(_POLL_S)
                for job, folder, process in list(running.values()):
                    if (code := process.ended()) is None:
                        continue
                    del running[job.number]
                    gpu_of.pop(job.number, None)
                    summary = self._record(job, folder, code)
                    more = more and not (self.config.sweep.fail_fast and not summary)
                    ended(job, self.results[job.number], summary)
                    self._note()
        finally:
            _send(running, signal.SIGKILL)
            for job, folder, process in running.values():  # after a second Ctrl-C
                while process.ended() is None:
                    time.sleep(_POLL_S)
                self._record(job, folder, -signal.SIGKILL)

    def _start(self, job: Job, environment: Mapping[str, str]) -> tuple[Job, Path, JobProcess]:
        folder, state = attempt(job, self.folder.path)
        print(f"\n{self.words(job)}{'  (resumed where it was interrupted)' if state == 'resume' else ''}", flush=True)
        command = [sys.executable, str(Path(sys.argv[0]).resolve()), FROM_STDIN]
        prefix = f"[{job.number}] " if self.at_once > 1 else None
        return job, folder, JobProcess(command, job.sent(folder, resume=state == "resume"), environment, prefix)

    def _environment(self, job: Job) -> dict[str, str]:
        parent = self._parent.reference if self._parent is not None else ""
        environment = {**os.environ, JOB_VARIABLE: str(job.number), PARENT_VARIABLE: parent, **job.environment}
        if not FULL_ERROR:
            environment.pop("HYDRA_FULL_ERROR", None)
        return environment

    def _record(self, job: Job, folder: Path, code: int) -> Mapping[str, Any]:
        """Records how a job has ended; returns its summary if it finished."""
        status, error = outcome(code, folder)
        if self.stopped and code == -signal.SIGKILL:
            error = f"stopped by {signal.Signals(self._stop.signum).name}"  # type: ignore[arg-type]
        summary = read_summary(folder) if status == "FINISHED" else {}
        self.results[job.number] = self.result(job, status, error, summary)
        if not summary:
            print(f"job {job.number} {status}: {error}", file=sys.stderr, flush=True)
            mark(folder, status, error)
            if self._parent is not None:
                tags = {"feedrate.command": job.command, JOB_TAG: str(job.number)}
                self._parent.mark(folder, "KILLED" if status == "KILLED" else "FAILED", error, tags)
        return summary

    def result(self, job: Job, status: str, error: str, summary: Mapping[str, Any] | None = None) -> JobResult:
        """A job's row of the table, with the figures of its summary."""
        if summary and summary.get("pruned"):
            status = "PRUNED"
        measured = self.report.measured(summary) if summary else {}
        return JobResult(
            number=job.number, settings=job.settings, command=job.command, status=status, error=error, **measured
        )

    def _open_parent(self) -> None:
        """Creates the store before the first job, which would otherwise compete for it with others."""
        mask_files(self.folder.path)  # multirun.yaml holds the overrides
        if self.config.tracking.uri is None:
            return
        command = command_line(["-m", *map(str, self.master.hydra.overrides.task)])
        self._parent = SweepRun(
            self.config.tracking,
            self.name,
            self.folder.path,
            settings=self.settings,
            tags={"feedrate.command": command},
            owned=lambda path: living_owner(path) is not None,
        )

    def _note(self, pictures: str = "") -> None:
        """Writes the table so far, for a sweep that is killed."""
        if self._parent is None:
            return
        results = self._ordered()
        best = self.report.best(results)
        link = self._parent.job_link("best job", best.run_id) if best is not None else ""
        pictures = "\n\n".join(filter(None, [link, pictures]))
        self._parent.note(self.report.table(results, rows=_NOTE_ROWS, pictures=pictures))

    def _close(self, status: Literal["FINISHED", "FAILED", "KILLED"], reason: str) -> None:
        """Writes table and plots to the terminal, the sweep's folder and the parent run, and closes it."""
        tracker = self._parent.tracker if self._parent is not None else Tracker()
        try:
            if any(found.status != "NOT RUN" for found in self.results.values()):
                paths = self.report.write(self._ordered(), self.folder.path)
                shown = in_columns(paths[0].read_text(encoding="utf-8"))
                print(f"\n{shown}\n\nsweep folder  {self.folder.path}", flush=True)
                self._note(" ".join(picture(p.name) for p in paths if p.suffix == ".png"))
                for path in paths:
                    tracker.artifact(path)
                if self._parent is not None and (best := self.report.best(self._ordered())) is not None:
                    self._parent.best(best.settings, best.metrics)
        finally:
            tracker.end(status, reason)
            if tracker.url is not None:
                print(f"this sweep    {tracker.url}\nall runs      {tracker.experiment_url}", flush=True)
            add(self.folder, status=status, error=reason, run_id=tracker.run_id)
            self.folder.release()

    def _ordered(self) -> list[JobResult]:
        return [self.results[number] for number in sorted(self.results)]


def _send(running: Mapping[int, tuple[Job, Path, JobProcess]], signum: int | None) -> None:
    for _, _, process in running.values():
        process.send(signum or signal.SIGTERM)
