"""The jobs of a sweep, composed and checked before the first one starts, and a copy of the configuration's files.

Each job composes its configuration from the copy, so that edits during the sweep do not reach later jobs.
"""

from __future__ import annotations

import copy
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import filter_overrides
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from feedrate.cli.launch import plain
from feedrate.config import TrainConfig, check
from feedrate.reporting.sweep_results import columns, settings
from feedrate.runs.provenance import command_line, job_id
from feedrate.system.secrets import learn, masked

# overrides of the sweep that its jobs do not get
_OF_THE_SWEEP = (
    "hydra.mode", "hydra.sweep.", "hydra.sweeper", "hydra/sweeper", "hydra.launcher", "hydra/launcher",
    "hydra.run.dir", "hydra.searchpath", "hydra.job.num", "hydra.job.id",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job before it runs."""

    number: int  # from 0
    overrides: tuple[str, ...]  # of the command line, those of Hydra included
    config: TrainConfig
    job_id: str  # from feedrate.runs.provenance
    settings: Mapping[str, str]  # key -> value, for the table's columns
    command: str  # repeats this job alone
    subfolder: str  # of the sweep's folder
    environment: Mapping[str, str] = field(default_factory=dict)


def compose(
    context: HydraContext, master: DictConfig, overrides: Sequence[Sequence[str]], first: int, keys: Sequence[str]
) -> list[Job]:
    """Composes and checks every job of a batch from the sweep's configuration, each job's overrides, the first job's
    number and the swept keys; a wrong setting raises UserError.
    """
    former = HydraConfig.instance().cfg
    try:
        return [_job(context, master, list(job), first + i, keys) for i, job in enumerate(overrides)]
    finally:
        HydraConfig.instance().cfg = former


def _job(context: HydraContext, master: DictConfig, overrides: list[str], number: int, keys: Sequence[str]) -> Job:
    composed = context.config_loader.load_sweep_config(master, overrides)
    with open_dict(composed):
        composed.hydra.job.num, composed.hydra.job.id = number, str(number)
        folder = Path(str(master.hydra.sweep.dir)).absolute() / str(composed.hydra.sweep.subdir)
        composed.hydra.runtime.output_dir = str(folder)
    HydraConfig.instance().set_config(composed)  # for ${hydra:...} in values
    task = copy.deepcopy(composed)
    with open_dict(task):
        del task["hydra"]
    resolved = plain(task, quiet=True)  # the job prints the notes
    learn(resolved)
    typed = settings(overrides)
    return Job(
        number=number,
        overrides=tuple(overrides),
        config=check(resolved),
        job_id=job_id(resolved),
        settings=masked({key: typed.get(key, _selected(task, key)) for key in columns(keys)}),
        command=command_line(list(filter_overrides(overrides))),
        subfolder=str(composed.hydra.sweep.subdir),
    )


def _selected(task: DictConfig, key: str) -> str:
    value = OmegaConf.select(task, key)
    return "" if value is None or OmegaConf.is_config(value) else str(value)


class FrozenFiles:
    """Copies the configuration's folders into the sweep's folder; makes the command that runs a job from the copy."""

    def __init__(self, master: DictConfig, folder: Path) -> None:
        self._name = str(master.hydra.job.config_name)
        self._hydra = [
            override
            for override in OmegaConf.to_container(master.hydra.overrides.hydra) or []
            if not str(override).lstrip("+~").startswith(_OF_THE_SWEEP)
        ]
        self._flags: list[str] = []
        search_path: list[str] = []
        for i, source in enumerate(master.hydra.runtime.config_sources):
            if source.schema != "file" or not source.path:
                if source.provider.startswith("hydra.searchpath"):
                    search_path.append(f"{source.schema}://{source.path}")
                continue
            target = folder / "conf" / (source.provider if source.provider == "main" else f"{i}")
            _copy_yaml(Path(source.path), target)
            if source.provider == "main":
                self._flags += ["--config-path", str(target)]
            elif source.provider == "command-line":
                self._flags += ["--config-dir", str(target)]
            else:
                search_path.append(f"file://{target}")
        if search_path:
            self._hydra.append(f"hydra.searchpath=[{','.join(map(quoted, search_path))}]")

    def command(self, job: Job, folder: Path, *, resume: bool) -> list[str]:
        """The sweep's entry point with the job's overrides and its run folder."""
        own = [
            "hydra.mode=RUN", f"hydra.run.dir={quoted(str(folder))}",
            f"hydra.job.num={job.number}", f"hydra.job.id='{job.number}'",
        ]  # fmt: skip
        if resume:
            own.append(f"trainer.resume={quoted(str(folder))}")
        script = str(Path(sys.argv[0]).resolve())
        overrides: list[Any] = [*self._hydra, *job.overrides, *own]
        return [sys.executable, script, *self._flags, "--config-name", self._name, *map(str, overrides)]


def _copy_yaml(source: Path, target: Path) -> None:
    """Copies the YAML files of a folder and its subfolders, and what links lead to, unless back to a folder above."""

    def left_out(folder: str, names: list[str]) -> list[str]:
        here = Path(folder).resolve()
        paths = [(name, here / name) for name in names]
        folders = [name for name, path in paths if path.is_dir() and path.resolve() not in (here, *here.parents)]
        return [n for n, path in paths if n not in folders and not (path.suffix == ".yaml" and path.is_file())]

    shutil.copytree(source, target, ignore=left_out, dirs_exist_ok=True)


def quoted(text: str) -> str:
    """A text in Hydra's quotes, where a backslash escapes only a quote."""
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text) + "'"
