"""Hydra's sweeper that searches: Optuna proposes settings, and the launcher of this repository runs each as a job.

The search stands under hydra.sweeper, best in a file in conf/experiment/; see docs/sweeps.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

# Hydra imports this module at the start of every command: slow imports stand in the methods.


class OptunaSweeper(Sweeper):
    """conf/hydra/sweeper/optuna.yaml, which explains the settings."""

    def __init__(self, **settings: Any) -> None:
        self._settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from hydra.core.plugins import Plugins

        from feedrate.errors import UserError
        from hydra_plugins.feedrate_launcher import FeedrateLauncher

        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        if not isinstance(launcher, FeedrateLauncher):
            name = type(launcher).__name__
            raise UserError(f"hydra/sweeper=optuna with hydra/launcher={name}: must be hydra/launcher=feedrate")
        self.launcher: FeedrateLauncher = launcher
        self.config = config

    def sweep(self, arguments: list[str]) -> None:
        """Continues the study of that name, or begins it; returns when it has all its trials.

        Raises:
            UserError: a setting is wrong or the study belongs to another search, before any job; or a trial failed.
            KeyboardInterrupt: Ctrl-C, SIGTERM or a closed terminal, when the running jobs have ended.
        """
        from hydra_plugins.feedrate_launcher._folder import discard
        from hydra_plugins.feedrate_optuna._search import Searching

        assert self.config is not None
        settings = {
            key: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            for key, value in self._settings.items()
        }
        fresh = Path(str(self.config.hydra.sweep.dir)).absolute()
        fresh.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, fresh / "multirun.yaml")
        try:
            searching = Searching(self.launcher, arguments, settings)
        except BaseException:
            discard(fresh)
            raise
        searching.run(fresh)
