"""The jobs of a sweep, composed and checked before the first one starts.

Each job's process gets its composed configuration, so that edits during the sweep do not reach later jobs.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import filter_overrides
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, open_dict, read_write

from feedrate.cli.launch import plain
from feedrate.cli.replaced import own_defaults
from feedrate.config import TrainConfig, check
from feedrate.reporting.results import key_values
from feedrate.runs.provenance import command_line, job_id
from feedrate.system.secrets import learn, masked


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job before it runs."""

    number: int  # from 0
    config: TrainConfig
    job_id: str  # from feedrate.runs.provenance
    settings: Mapping[str, str]  # key -> value, for the table's columns
    command: str  # repeats this job alone
    subfolder: str  # of the sweep's folder
    composed: DictConfig  # with Hydra's own node
    notes: Sequence[str] = ()  # on classes that replace an option's own
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def chosen(self) -> str:
        """The swept settings in words."""
        return " ".join(f"{key}={value}" for key, value in self.settings.items())

    def sent(self, folder: Path, *, resume: bool) -> bytes:
        """What the job's process reads: the configuration of a run in `folder`.

        Pickled: YAML would lose the types of Hydra's node, and the time that `${now:}` has been in the sweep.
        """
        config = self.composed.copy()
        with read_write(config.hydra):
            config.hydra.run.dir = str(folder)
        if resume:
            config.trainer.resume = str(folder)
        return pickle.dumps(config)


def compose(
    context: HydraContext, master: DictConfig, overrides: Sequence[Sequence[str]], first: int, keys: Sequence[str]
) -> list[Job]:
    """Composes and checks jobs from the sweep's configuration, their overrides, the first number and the swept keys."""
    former = HydraConfig.instance().cfg
    try:
        return [_job(context, master, list(job), first + i, keys) for i, job in enumerate(overrides)]
    finally:
        HydraConfig.instance().cfg = former


def _job(context: HydraContext, master: DictConfig, overrides: list[str], number: int, keys: Sequence[str]) -> Job:
    composed = context.config_loader.load_sweep_config(master, overrides)
    with open_dict(composed):
        composed.hydra.mode = RunMode.RUN
        composed.hydra.job.num, composed.hydra.job.id = number, str(number)
        subfolder = str(composed.hydra.sweep.subdir)
        composed.hydra.runtime.output_dir = str(Path(str(master.hydra.sweep.dir)).absolute() / subfolder)
    HydraConfig.instance().set_config(composed)  # for ${hydra:...} in values
    composed, notes = own_defaults(composed, composed.hydra)
    with read_write(composed.hydra):
        composed.hydra.runtime.config_sources = []  # the job shall not compose again
    without_hydra = copy.deepcopy(composed)
    with open_dict(without_hydra):
        del without_hydra["hydra"]
    resolved = plain(without_hydra, job=composed.hydra)
    learn(resolved)
    typed = key_values(overrides)
    return Job(
        number=number,
        config=check(resolved),
        job_id=job_id(resolved),
        settings=masked({key: typed.get(key, "") for key in keys}),
        command=command_line(list(filter_overrides(overrides))),
        subfolder=subfolder,
        composed=composed,
        notes=notes,
    )
