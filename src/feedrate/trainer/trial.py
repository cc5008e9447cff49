"""One trial of a search: reports the metric of each epoch to the study, which may prune the trial.

optuna is imported only where there is a study.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feedrate.errors import UserError
from feedrate.tracking.address import sqlite_url
from feedrate.validation import nearest

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from optuna.study import Study

STORAGE_VARIABLE, TRIAL_VARIABLE = "FEEDRATE_STUDY", "FEEDRATE_TRIAL"
STUDY_NAME = "search"  # each file holds one study
METRIC, PRUNER = "metric", "pruner"  # user attributes of the study
_REASON = "stopped by the search"
_LOCKED_S = 60  # several jobs write into one SQLite file
log = logging.getLogger("feedrate")


class Trial:
    """Call after each epoch; outside a search it does nothing."""

    def __init__(self, max_epochs: int) -> None:
        self._max_epochs = max_epochs
        self._storage, self._number = os.environ.get(STORAGE_VARIABLE), os.environ.get(TRIAL_VARIABLE)

    def __call__(self, epoch: int, metrics: Mapping[str, float]) -> str:
        """Why training must end now, or an empty text. A study that cannot be used is a warning."""
        if not self._storage or not self._number:
            return ""
        try:
            metric, pruned = self._report(Path(self._storage), int(self._number), epoch, metrics)
        except Exception as error:
            log.warning("epoch %d could not be reported to the search: %s", epoch + 1, error)
            return ""
        if not pruned or epoch + 1 >= self._max_epochs:
            return ""
        return f"{_REASON}: {metric}={metrics[metric]:.4g} is poor for epoch {epoch + 1}"

    def facts(self, stopped: str) -> dict[str, str]:
        """Facts for summary and tags of a run with this `stopped`."""
        return {"pruned": "true"} if stopped.startswith(_REASON) else {}

    def _report(self, path: Path, number: int, epoch: int, metrics: Mapping[str, float]) -> tuple[str, bool]:
        optuna = quiet_optuna()
        study: Study = optuna.load_study(study_name=STUDY_NAME, storage=open_storage(path, new=False))
        metric = str(study.user_attrs[METRIC])
        if metric not in metrics:  # reported by the search at the end of the run
            return metric, False
        study.pruner = build("pruners", study.user_attrs[PRUNER])
        trial_id = study.get_trials(deepcopy=False)[number]._trial_id
        trial = optuna.trial.Trial(study, trial_id)
        trial.report(metrics[metric], epoch)
        return metric, trial.should_prune()


def quiet_optuna() -> Any:
    """The module optuna, logging warnings only."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


def open_storage(path: Path, *, new: bool) -> RDBStorage:
    """The SQLite file of a study, at an absolute path, for several processes at once; `new` creates what is missing."""
    from optuna.storages import RDBStorage

    arguments = {"connect_args": {"timeout": _LOCKED_S}}
    return RDBStorage(sqlite_url(path), arguments, skip_compatibility_check=not new, skip_table_creation=not new)


def build(kind: str, settings: Mapping[str, Any]) -> Any:
    """One of optuna's samplers or pruners (`kind`), from the `name` of its class and its constructor's arguments.

    Raises:
        UserError: there is none of that name, or it does not take such an argument.
    """
    module = getattr(quiet_optuna(), kind)
    arguments = dict(settings)
    name = str(arguments.pop("name", ""))
    where = f"hydra.sweeper.{kind.removesuffix('s')}"
    valid = [option for option in module.__all__ if not option.startswith("Base")]
    if name not in valid:
        raise UserError(f"{where}.name={name}: no such class{nearest(name, valid)}\nValid names: {', '.join(valid)}")
    try:
        return getattr(module, name)(**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{where}: optuna's {name} refuses {arguments}: {error}\nRemove an argument with ~{where}.ARGUMENT"
        ) from error
