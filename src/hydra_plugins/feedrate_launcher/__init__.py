"""Hydra's launcher of this repository: each job of a sweep in a fresh process, one MLflow parent run above them.

A job is exactly what its own command would be; what a single run does is train.py's affair.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

if TYPE_CHECKING:
    from feedrate.tracking.sweep import SweepRun
    from feedrate.tracking.sweep_table import Result
    from feedrate.trainer.run_folder import RunFolder
    from hydra_plugins.feedrate_launcher._freeze import FrozenFiles, Job
    from hydra_plugins.feedrate_launcher._process import JobProcess

# Hydra imports this module at the start of every command (but not those whose names begin with an underscore): what
# costs time is imported by `launch`.

_TABLE_ROWS = 30  # in MLflow's note, whose length is limited
_log = logging.getLogger(__name__)


class FeedrateLauncher(Launcher):
    """conf/hydra/launcher/feedrate.yaml.

    Args:
        jobs: how many run at once.
    """

    def __init__(self, jobs: int = 1) -> None:
        self._at_once = jobs
        self._folder: RunFolder | None = None
        self._parent: SweepRun | None = None
        self._keys: list[str] = []
        self._results: dict[int, Result] = {}
        self._folders: dict[int, Path] = {}
        self._running: dict[int, JobProcess] = {}
        self._lock = threading.Lock()
        self._stop = False

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._context, self._config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs a batch of jobs; a sweeper that searches calls it several times, and all belong to one parent run.

        Raises:
            UserError: a job's configuration is wrong, or the tracking store cannot be used; nothing has begun then.
            KeyboardInterrupt: Ctrl-C or SIGTERM, when the running jobs have ended.
        """
        from feedrate.errors import UserError
        from feedrate.tracking.sweep_table import swept
        from feedrate.trainer.run_folder import RunFolder
        from hydra_plugins.feedrate_launcher._freeze import FrozenFiles, compose

        setup_globals()
        configure_log(self._config.hydra.hydra_logging, self._config.hydra.verbose)
        if isinstance(self._at_once, bool) or not isinstance(self._at_once, int) or self._at_once < 1:
            raise UserError(f"hydra.launcher.jobs={self._at_once}: must be a whole number of at least 1")
        self._keys = list(dict.fromkeys([*self._keys, *swept([filter_overrides(job) for job in job_overrides])]))
        jobs = compose(self._context, self._config, job_overrides, initial_job_idx, self._keys)
        if self._folder is None:
            self._folder = RunFolder(Path(str(self._config.hydra.sweep.dir)).absolute())
        status, reason = "KILLED", "the sweep was interrupted"
        try:
            files = FrozenFiles(self._config, self._folder.path)
            self._open_parent(jobs)
            self._run(jobs, files)
            wrong = [r for r in self._results.values() if r.status != "FINISHED"]
            status = "FAILED" if wrong else "FINISHED"
            reason = f"{len(wrong)} of {len(self._results)} jobs did not finish" if wrong else ""
        except Exception as error:
            status, reason = "FAILED", str(error)
            raise
        finally:
            self._close(jobs, status, reason)
        return [_returned(job, self._results[job.number], reason) for job in jobs]

    # -----------------------------------------------------------------------------------------------------
    # The parent run
    # -----------------------------------------------------------------------------------------------------

    def _open_parent(self, jobs: Sequence[Job]) -> None:
        """Before the first job, so that the jobs find a store that is there; needs no mlflow with tracking=none."""
        from feedrate.tracking import without_secrets
        from feedrate.tracking.sweep import Plan, SweepRun
        from feedrate.trainer.provenance import command_line
        from feedrate.trainer.run_folder import living_owner

        assert self._folder is not None
        if self._parent is not None or jobs[0].config.tracking.uri is None:
            return
        typed = [str(override) for override in self._config.hydra.overrides.task]
        plan = Plan(
            name=_name(self._keys),
            sweep_id=hashlib.sha256(json.dumps(sorted(job.job_id for job in jobs)).encode()).hexdigest()[:16],
            command=without_secrets(command_line(["-m", *typed])),
            folder=self._folder.path,
            settings={k: ", ".join(dict.fromkeys(job.settings[k] for job in jobs)) for k in self._keys},
        )
        self._parent = SweepRun(
            jobs[0].config.tracking,
            plan,
            again=jobs[0].config.sweep.again,
            owned=lambda folder: living_owner(folder) is not None,
        )

    def _close(self, jobs: Sequence[Job], status: Any, reason: str) -> None:
        """Table and pictures of all that ended, in the terminal, in the sweep's folder and on the parent run."""
        from feedrate.tracking.sweep_plots import MEASURES, sweep_figure
        from feedrate.tracking.sweep_table import as_csv, groups, markdown

        assert self._folder is not None
        folder = self._folder.path
        for job in jobs:
            self._results.setdefault(job.number, _result(job, "NOT RUN", ""))
        results = [self._results[number] for number in sorted(self._results)]
        if not any(result.status != "NOT RUN" for result in results):
            if self._parent is not None:
                self._parent.end(status, reason)
            self._folder.release()
            return
        table = markdown(results, self._keys)
        written = {"sweep.md": table, "sweep.csv": as_csv(results, self._keys)}
        for name, text in written.items():
            (folder / name).write_text(text, encoding="utf-8")
        paths = [folder / name for name in written]
        found = groups(results, self._keys)
        for measure in MEASURES:
            if any(group.mean(measure) is not None for group in found):
                paths.append(folder / f"{measure}.png")
                figure = sweep_figure(found, measure)
                figure.savefig(paths[-1], dpi=figure.dpi)
        print(f"\n{table}\nsweep folder  {folder}", flush=True)
        if self._parent is not None:
            self._note()
            for path in paths:
                self._parent.artifact(path)
            self._parent.end(status, reason)
            print(f"this sweep    {self._parent.url}\nall runs      {self._parent.experiment_url}", flush=True)
        self._folder.release()

    def _note(self) -> None:
        """The table so far, so that an interrupted sweep has one too."""
        from feedrate.tracking.sweep import NOTE_CHARACTERS
        from feedrate.tracking.sweep_table import markdown

        if self._parent is None:
            return
        results = [self._results[number] for number in sorted(self._results)]
        text = markdown(results, self._keys)
        self._parent.note(text if len(text) < NOTE_CHARACTERS else markdown(results, self._keys, rows=_TABLE_ROWS))

    # -----------------------------------------------------------------------------------------------------
    # The jobs
    # -----------------------------------------------------------------------------------------------------

    def _run(self, jobs: Sequence[Job], files: FrozenFiles) -> None:
        left = [job for job in jobs if not self._skipped(job, jobs)]
        print(
            f"sweep of {len(jobs)} jobs, {self._at_once} at once" if self._at_once > 1 else f"sweep of {len(jobs)} jobs"
        )
        with _terminated_as_interrupt(), ThreadPoolExecutor(self._at_once) as pool:
            futures = {pool.submit(self._run_one, job, len(jobs), files): job for job in left}
            try:
                for future in as_completed(futures):
                    self._ended(futures[future], *future.result())
            except BaseException as interrupt:
                self._interrupt(list(futures), getattr(interrupt, "exit_code", 130) - 128)
                for future, job in futures.items():
                    if not future.cancelled() and job.number not in self._results:
                        self._ended(job, *future.result())
                raise

    def _skipped(self, job: Job, jobs: Sequence[Job]) -> bool:
        """Takes over what an interrupted start of this sweep finished, unless jobs differ only in paths."""
        from feedrate.tracking.sweep_table import read_summary

        folder = self._parent.finished.get(job.job_id) if self._parent is not None else None
        if folder is None or sum(other.job_id == job.job_id for other in jobs) > 1:
            return False
        summary = read_summary(folder)
        if summary.get("status") != "FINISHED" or summary.get("job_id") != job.job_id:
            return False
        self._results[job.number] = _result(job, "FINISHED", "", summary)
        print(f"job {job.number} finished before: {folder}")
        return True

    def _run_one(self, job: Job, total: int, files: FrozenFiles) -> tuple[str, str]:
        """Status and error of one job; runs in a thread of the pool, which lives as long as the job."""
        from hydra_plugins.feedrate_launcher._process import JobProcess, outcome

        with self._lock:
            if self._stop:
                return "NOT RUN", ""
            chosen = " ".join(f"{key}={value}" for key, value in job.settings.items() if key in self._keys)
            print(f"\njob {job.number} of {total}: {chosen}", flush=True)
            prefix = f"[{job.number}] " if self._at_once > 1 else None
            process = JobProcess(files.command(job), self._environment(job), prefix)
            self._running[job.number] = process
        code = process.wait()
        status, error = outcome(code, job.folder, process.error)
        with self._lock:
            del self._running[job.number]
            self._stop |= status != "FINISHED" and job.config.sweep.fail_fast
        return status, error

    def _ended(self, job: Job, status: str, error: str) -> None:
        """In the main thread: what a job's end means for the table, the terminal and MLflow."""
        from feedrate.tracking.sweep_table import read_summary

        finished = status == "FINISHED"
        self._results[job.number] = _result(job, status, error, read_summary(job.folder) if finished else {})
        if status in ("FAILED", "KILLED"):
            print(f"job {job.number} {status}: {error}", file=sys.stderr, flush=True)
            if self._parent is not None:
                from feedrate.tracking.sweep import JOB_TAG

                tags = {"feedrate.command": job.command, "feedrate.job_id": job.job_id, JOB_TAG: str(job.number)}
                self._parent.mark(job.folder, "KILLED" if status == "KILLED" else "FAILED", error, tags)
        if status != "NOT RUN":
            self._note()

    def _interrupt(self, futures: Sequence[Future[Any]], signum: int) -> None:
        """Passes the signal on and waits; a second Ctrl-C, or a job that does not end, is met with SIGKILL."""
        from hydra_plugins.feedrate_launcher._process import GRACE_S

        with self._lock:
            self._stop = True
            running = list(self._running.values())
        for process in running:
            process.interrupt(signum)
        try:
            late = wait(futures, timeout=GRACE_S).not_done
        except KeyboardInterrupt:
            late = set(futures)
        if late:
            for process in running:
                process.kill()
        wait(futures)

    def _environment(self, job: Job) -> Mapping[str, str]:
        from feedrate.launch import FULL_ERROR
        from feedrate.tracking.sweep import JOB_VARIABLE, PARENT_VARIABLE

        environment = {**os.environ, JOB_VARIABLE: str(job.number)}
        environment.pop(PARENT_VARIABLE, None)
        if not FULL_ERROR:
            environment.pop("HYDRA_FULL_ERROR", None)
        if self._parent is not None:
            environment[PARENT_VARIABLE] = self._parent.run_id
        return environment


class _Returned(JobReturn):
    """Hydra's own writes a line of overrides to stderr for the first job that failed; each was reported already."""

    @property
    def return_value(self) -> Any:
        if self.status != JobStatus.COMPLETED:
            raise self._return_value
        return self._return_value

    @return_value.setter
    def return_value(self, value: Any) -> None:
        self._return_value = value


def _returned(job: Job, result: Result, reason: str) -> JobReturn:
    """For the sweeper: the lowest validation loss, or an error that ends the command with exit code 1."""
    from feedrate.errors import UserError

    returned = _Returned(overrides=job.overrides, working_dir=str(job.folder), task_name="train")
    if result.status == "FINISHED":
        returned.status, returned.return_value = JobStatus.COMPLETED, result.value
    else:
        text = f"{reason}; the table says why"
        returned.status, returned.return_value = JobStatus.FAILED, UserError(text)
    return returned


def _result(job: Job, status: str, error: str, summary: Mapping[str, Any] | None = None) -> Result:
    from feedrate.tracking.sweep_table import Result, figures

    measured = figures(summary) if summary else {}
    return Result(number=job.number, settings=job.settings, command=job.command, status=status, error=error, **measured)


def _name(keys: Sequence[str]) -> str:
    """`sweep num_workers x batch_size`."""
    return f"sweep {' x '.join(key.rpartition('.')[2] for key in keys) or 'of one'}"[:100]


@contextmanager
def _terminated_as_interrupt() -> Iterator[None]:
    """SIGTERM ends a sweep as Ctrl-C does, with exit code 143."""
    from feedrate.trainer.interrupt import Interrupted

    def stop(signum: int, frame: object) -> None:
        raise Interrupted(signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
