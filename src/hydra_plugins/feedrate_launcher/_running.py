"""Runs jobs, so many at once, until there is no further one or the sweep is stopped; every job that began is ended.

Which job comes next and what its end means is told by the caller.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import Empty, SimpleQueue

from feedrate.cli.launch import FULL_ERROR
from feedrate.system.signals import how_to_hurry
from feedrate.tracking.tracker import JOB_VARIABLE, PARENT_VARIABLE
from hydra_plugins.feedrate_launcher._freeze import FrozenFiles, Job
from hydra_plugins.feedrate_launcher._gpus import VARIABLE, least_used, visible
from hydra_plugins.feedrate_launcher._lock import Attempt, attempt
from hydra_plugins.feedrate_launcher._process import GRACE_S, JobProcess, outcome
from hydra_plugins.feedrate_launcher._stop import Stop

Next = Callable[[], "Job | None"]
Ended = Callable[[Job, Attempt, str, str], None]
"""Takes the job, where it ran, its status and its error."""


class Jobs:
    """The running jobs of one sweep.

    Args:
        at_once: how many may run at the same time.
        files: make a job's command.
        sweep: the sweep's folder.
        parent: what jobs name the parent run by, None where nothing is recorded.
        stop: tells of the signals that ask to stop.
        words: what the line that announces a job says of it.
    """

    def __init__(
        self, at_once: int, files: FrozenFiles, sweep: Path, parent: str | None, stop: Stop, words: Callable[[Job], str]
    ) -> None:
        self._at_once, self._files, self._sweep, self._parent = at_once, files, sweep, parent
        self._stop, self._words = stop, words
        self._running: dict[int, JobProcess] = {}
        self._gpus = visible() if at_once > 1 else []
        self._gpu_of: dict[int, str] = {}  # of the running jobs
        self._events: SimpleQueue[tuple[Job, Attempt, int] | None] = SimpleQueue()  # may be put to by a signal handler
        self._no_more = False

    def run(self, following: Next, ended: Ended) -> None:
        """Returns when `following` gives no job and all have ended, or when the sweep was stopped and all have ended.

        Args:
            following: gives the next job whenever there is room, None when there is no further one.
            ended: is called for each job, in this thread, in the order of their ends.
        """
        self._stop.called, self._stop.called_again = lambda: self._events.put(None), self._kill
        kill_at: float | None = None
        try:
            while True:
                while not self._no_more and self._stop.signum is None and len(self._running) < self._at_once:
                    job = following()
                    if job is None:
                        break
                    self._start(job)
                if not self._running:
                    return
                if self._stop.signum is not None and kill_at is None:
                    kill_at = time.monotonic() + GRACE_S
                    self._interrupt(self._stop.signum)
                self._take(ended, kill_at)
        finally:
            self._end_all()

    def start_no_more(self) -> None:
        """The running jobs go on; no other one begins."""
        self._no_more = True

    def _start(self, job: Job) -> None:
        where = attempt(job, self._sweep)
        resumed = "  (goes on where it was interrupted)" if where.state == "resume" else ""
        print(f"\n{self._words(job)}{resumed}", flush=True)
        prefix = f"[{job.number}] " if self._at_once > 1 else None
        command = self._files.command(job, where.folder, resume=where.state == "resume")
        # on Linux a job is told when the thread that started it is gone: this is the thread that stays
        process = JobProcess(command, self._environment(job), prefix)
        self._running[job.number] = process
        threading.Thread(target=lambda: self._events.put((job, where, process.wait())), daemon=True).start()

    def _take(self, ended: Ended, kill_at: float | None) -> None:
        """Waits for the next event: a job's end, a signal, or the end of patience."""
        try:
            event = self._events.get(timeout=None if kill_at is None else max(0.0, kill_at - time.monotonic()))
        except Empty:
            self._kill()
            event = self._events.get()
        if event is None:
            return
        job, where, code = event
        process = self._running.pop(job.number)
        self._gpu_of.pop(job.number, None)
        status, error = outcome(code, where.folder, process.error)
        if self._stop.signum is not None and code == -signal.SIGKILL:  # sent by `_kill`
            error = f"stopped by {signal.Signals(self._stop.signum).name}"
        ended(job, where, status, error)

    def _interrupt(self, signum: int) -> None:
        print(
            f"\n{signal.Signals(signum).name}: the running jobs write a checkpoint, for at most {GRACE_S:.0f} s;"
            f" {how_to_hurry(signum)}",
            file=sys.stderr,
            flush=True,
        )
        for process in self._running.values():
            process.interrupt(signum)

    def _kill(self) -> None:
        for process in list(self._running.values()):
            process.kill()

    def _end_all(self) -> None:
        """Something went wrong while jobs run; nothing may be left of them."""
        for process in self._running.values():
            process.kill()
            process.wait()
        self._running.clear()

    def _environment(self, job: Job) -> Mapping[str, str]:
        environment = {**os.environ, JOB_VARIABLE: str(job.number), **job.environment}
        environment.pop(PARENT_VARIABLE, None)
        if not FULL_ERROR:
            environment.pop("HYDRA_FULL_ERROR", None)
        if len(self._gpus) > 1 and job.config.trainer.device in ("auto", "cuda"):
            environment[VARIABLE] = self._gpu_of[job.number] = least_used(self._gpus, self._gpu_of.values())
        if self._parent is not None:
            environment[PARENT_VARIABLE] = self._parent
        return environment
