"""Runs the jobs of a sweep, so many at once, until there are no more or the sweep is stopped."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import Empty, SimpleQueue

from feedrate.cli.launch import FULL_ERROR
from feedrate.system.signals import Interruption
from feedrate.tracking.tracker import JOB_VARIABLE, PARENT_VARIABLE
from hydra_plugins.feedrate_launcher._freeze import FrozenFiles, Job
from hydra_plugins.feedrate_launcher._gpus import VARIABLE, visible
from hydra_plugins.feedrate_launcher._lock import Attempt, attempt
from hydra_plugins.feedrate_launcher._process import GRACE_S, JobProcess, outcome

_POLL_S = 0.1
Next = Callable[[], "Job | None"]
Ended = Callable[[Job, Attempt, str, str], None]
"""Called with the job, its folder and state before it ran, its status and its error."""


class SweepInterruption(Interruption):
    """A second Ctrl-C kills the running jobs; a third ends the sweep at once."""

    action = f"the running jobs write a checkpoint, for at most {GRACE_S:.0f} s"
    patience_s = None  # the table is written after the jobs have ended

    def _hurry(self) -> None:
        if self.hurried:
            self.check()
        self.hurried = True


class Jobs:
    """The running jobs of one sweep."""

    def __init__(
        self,
        at_once: int,
        files: FrozenFiles,
        sweep: Path,  # the sweep's folder
        parent: str | None,  # reference of the parent run for the jobs; None where nothing is recorded
        stop: SweepInterruption,
        words: Callable[[Job], str],  # describes a job in the line that announces it
    ) -> None:
        self._at_once, self._files, self._sweep, self._parent = at_once, files, sweep, parent
        self._stop, self._words = stop, words
        self._running: dict[int, JobProcess] = {}
        self._gpus = visible() if at_once > 1 else []
        self._gpu_of: dict[int, str] = {}  # of the running jobs
        self._ends: SimpleQueue[tuple[Job, Attempt, int]] = SimpleQueue()
        self._no_more = False

    def run(self, following: Next, ended: Ended) -> None:
        """Runs the jobs that `following` returns until it returns None or the sweep is stopped, and all have ended."""
        kill_at = 0.0
        try:
            while True:
                while not self._no_more and self._stop.signum is None and len(self._running) < self._at_once:
                    job = following()
                    if job is None:
                        break
                    self._start(job)
                if not self._running:
                    return
                if self._stop.signum is not None:
                    if not kill_at:
                        kill_at = time.monotonic() + GRACE_S
                        for process in self._running.values():
                            process.send(self._stop.signum)
                    if self._stop.hurried or time.monotonic() > kill_at:
                        self._kill()
                try:
                    job, where, code = self._ends.get(timeout=_POLL_S)
                except Empty:
                    continue
                process = self._running.pop(job.number)
                self._gpu_of.pop(job.number, None)
                status, error = outcome(code, where.folder, process.error)
                if self._stop.signum is not None and code == -signal.SIGKILL:
                    error = f"stopped by {signal.Signals(self._stop.signum).name}"
                ended(job, where, status, error)
        finally:
            self._kill()
            for process in self._running.values():
                process.wait()

    def start_no_more(self) -> None:
        """Starts no further job; those that run go on."""
        self._no_more = True

    def _start(self, job: Job) -> None:
        where = attempt(job, self._sweep)
        resumed = "  (goes on where it was interrupted)" if where.state == "resume" else ""
        print(f"\n{self._words(job)}{resumed}", flush=True)
        command = self._files.command(job, where.folder, resume=where.state == "resume")
        # in this thread, since Linux signals the job when the thread that started it ends
        process = JobProcess(command, self._environment(job), f"[{job.number}] " if self._at_once > 1 else None)
        self._running[job.number] = process
        threading.Thread(target=lambda: self._ends.put((job, where, process.wait())), daemon=True).start()

    def _kill(self) -> None:
        for process in self._running.values():
            process.send(signal.SIGKILL)

    def _environment(self, job: Job) -> Mapping[str, str]:
        environment = {**os.environ, JOB_VARIABLE: str(job.number), **job.environment}
        environment.pop(PARENT_VARIABLE, None)
        if not FULL_ERROR:
            environment.pop("HYDRA_FULL_ERROR", None)
        if len(self._gpus) > 1 and job.config.trainer.device in ("auto", "cuda"):
            used = Counter(self._gpu_of.values())
            environment[VARIABLE] = self._gpu_of[job.number] = min(self._gpus, key=lambda gpu: used[gpu])
        if self._parent is not None:
            environment[PARENT_VARIABLE] = self._parent
        return environment
