"""Hydra's launcher of this repository: each job of a sweep in a fresh process, under one MLflow parent run.

A job does exactly what its own command does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from feedrate.system.signals import raise_when_stopped

# Hydra imports this module, but not those beside it, at the start of every command: `launch` imports what takes time.


class FeedrateLauncher(Launcher):
    """conf/hydra/launcher/feedrate.yaml; `jobs` is how many run at once."""

    def __init__(self, jobs: int = 1) -> None:
        self._jobs = jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        raise_when_stopped()  # a folder is created next, and removed if nothing comes of it
        self.context, self.config = hydra_context, config

    def prepare(self) -> int:
        """Configures logging; returns how many jobs run at once."""
        from feedrate.errors import UserError

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        if type(self._jobs) is not int or self._jobs < 1:
            raise UserError(f"hydra.launcher.jobs={self._jobs}: must be a whole number of at least 1")
        return self._jobs

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs the jobs, all of which are checked before, and returns their lowest validation losses."""
        from feedrate.reporting.report import Report
        from feedrate.reporting.results import swept
        from hydra_plugins.feedrate_launcher._folder import discard, identity, open_folder, wait_for
        from hydra_plugins.feedrate_launcher._jobs import compose
        from hydra_plugins.feedrate_launcher._sweep import Sweep

        fresh = Path(str(self.config.hydra.sweep.dir)).absolute()
        try:
            at_once = self.prepare()
            keys = swept([filter_overrides(job) for job in job_overrides])
            jobs = compose(self.context, self.config, job_overrides, initial_job_idx, keys)
        except BaseException:
            discard(fresh)
            raise
        sweep = Sweep(
            master=self.config,
            folder=open_folder(fresh, identity(jobs), again=jobs[0].config.sweep.again),
            at_once=at_once,
            name=_name(self.config.hydra.runtime.choices, keys),
            settings={key: ", ".join(dict.fromkeys(job.settings[key] for job in jobs)) for key in keys},
            config=jobs[0].config,
            report=Report(keys),
            words=lambda job: f"job {job.number} of {len(jobs)}: {job.chosen}",
        )
        with sweep.open(jobs):
            print(f"sweep of {len(jobs)} jobs" + (f", {at_once} at once" if at_once > 1 else ""))
            for note in dict.fromkeys(note for job in jobs for note in job.notes):
                print(note)
            wait_for(jobs, sweep.folder.path)
            left = [job for job in jobs if not sweep.finished_before(job)]
            for number in sweep.results:
                print(f"job {number} finished before: {jobs[number - initial_job_idx].chosen}")
            sweep.run(iter(left))
        return [JobReturn(status=JobStatus.COMPLETED, _return_value=sweep.results[job.number].value) for job in jobs]


def _name(choices: Mapping[str, str], keys: Sequence[str]) -> str:
    """`sweep cnn-digits num_workers x batch_size`: model and data unless they are swept, then what is swept."""
    common = "-".join(choices[group] for group in ("model", "dataset") if group not in keys)
    swept = " x ".join(key.rpartition(".")[2] for key in keys) or "of one"
    return " ".join(filter(None, ["sweep", common, swept]))[:100]
