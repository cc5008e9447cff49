"""Hydra's launcher of this repository: each job of a sweep in a fresh process, under one MLflow parent run.

A job does exactly what its own command does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from feedrate.system.signals import raise_on_interrupt

if TYPE_CHECKING:
    from hydra_plugins.feedrate_launcher._freeze import Job
    from hydra_plugins.feedrate_launcher._sweep import Sweep

# Hydra imports this module, but not those beside it, at the start of every command: `launch` imports what takes time.


class FeedrateLauncher(Launcher):
    """conf/hydra/launcher/feedrate.yaml.

    Args:
        jobs: how many run at once.

    Attributes:
        context, config: from Hydra.
    """

    def __init__(self, jobs: int = 1) -> None:
        self._jobs = jobs
        self._sweep: Sweep | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        raise_on_interrupt()  # a folder is created next, and removed if nothing comes of it
        self.context, self.config = hydra_context, config

    def prepare(self) -> int:
        """Configures logging; returns how many jobs run at once.

        Raises:
            UserError: hydra.launcher.jobs is no positive number.
        """
        from feedrate.errors import UserError
        from feedrate.validation import as_yaml

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        if isinstance(self._jobs, bool) or not isinstance(self._jobs, int) or self._jobs < 1:
            raise UserError(f"hydra.launcher.jobs={as_yaml(self._jobs)}: must be a whole number of at least 1")
        return self._jobs

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs a batch of jobs and returns their lowest validation losses; several batches share one parent run.

        Raises:
            UserError: before any job runs: one is configured wrongly, the same sweep is running, or the tracking store
                cannot be used; at the end: a job failed.
            KeyboardInterrupt: after Ctrl-C, SIGTERM or SIGHUP, when the running jobs have ended.
        """
        from feedrate.errors import UserError
        from feedrate.reporting.results import swept
        from hydra_plugins.feedrate_launcher._freeze import compose
        from hydra_plugins.feedrate_launcher._lock import discard

        fresh = Path(str(self.config.hydra.sweep.dir)).absolute()
        try:
            at_once = self.prepare()
            keys = swept([filter_overrides(job) for job in job_overrides])
            if self._sweep is not None:
                keys = list(dict.fromkeys([*self._sweep.about.report.keys, *keys]))
            jobs = compose(self.context, self.config, job_overrides, initial_job_idx, keys)
        except BaseException:
            discard(fresh)
            raise
        sweep = self._sweep = self._claimed(fresh, jobs, keys, at_once)
        with sweep.stoppable(), sweep.open(jobs):
            print(f"sweep of {len(jobs)} jobs" + (f", {at_once} at once" if at_once > 1 else ""))
            sweep.wait_for(jobs)
            left = []
            for job in jobs:
                if sweep.finished_before(job):
                    print(f"job {job.number} finished before: {_chosen(job, keys)}")
                else:
                    left.append(job)
            following = iter(left)
            sweep.run(lambda: next(following, None), lambda *_: None)
        if sweep.outcome[1]:
            raise UserError(f"{sweep.outcome[1]}; the table says why")
        return [
            JobReturn(
                overrides=job.overrides, status=JobStatus.COMPLETED, _return_value=sweep.results[job.number].value
            )
            for job in jobs
        ]

    def _claimed(self, fresh: Path, jobs: Sequence[Job], keys: Sequence[str], at_once: int) -> Sweep:
        from feedrate.reporting.report import Report
        from hydra_plugins.feedrate_launcher._lock import changed_since, claim, description, identity
        from hydra_plugins.feedrate_launcher._sweep import About, Sweep, claimed_again

        if self._sweep is not None:
            self._sweep.about.report.keys = list(keys)
            return claimed_again(self._sweep)
        about = About(
            name=_name(jobs, self.config.hydra.runtime.choices, keys),
            sweep_id=identity(jobs),
            settings={key: ", ".join(dict.fromkeys(job.settings[key] for job in jobs)) for key in keys},
            config=jobs[0].config,
            report=Report(keys),
            words=lambda job: f"job {job.number} of {len(jobs)}: {_chosen(job, keys)}",
        )
        claimed = claim(fresh, about.sweep_id, again=about.config.sweep.again)
        if not claimed.facts:
            facts = description(jobs, self.config.hydra.overrides.task)
            if not about.config.sweep.again and (changed := changed_since(fresh, facts)):
                print(f"note: {changed}; a new sweep begins")
            claimed.write(**facts)
        return Sweep(self.config, about, claimed, at_once)


def _name(jobs: Sequence[Job], choices: Mapping[str, str], keys: Sequence[str]) -> str:
    """`sweep cnn-digits num_workers x batch_size`: what all jobs have in common, then what is swept."""
    nodes = [job.config.dataset for job in jobs]
    data = {str(node.get("name") or Path(str(node.get("root") or choices["dataset"])).name) for node in nodes}
    models = {str(job.config.model["_target_"]) for job in jobs}
    common = [choices["model"]] * (len(models) == 1) + list(data) * (len(data) == 1)
    words = ["sweep", "-".join(common), " x ".join(key.rpartition(".")[2] for key in keys) or "of one"]
    return " ".join(filter(None, words))[:100]


def _chosen(job: Job, keys: Sequence[str]) -> str:
    return " ".join(f"{key}={value}" for key, value in job.settings.items() if key in keys)
