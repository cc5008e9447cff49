"""Pruning of a search's runs: reports the metric of each epoch to the study, which may end the run early.

optuna is imported only where there is a study.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feedrate.cli import targets
from feedrate.tracking.address import sqlite_url

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

STORAGE_VARIABLE, TRIAL_VARIABLE = "FEEDRATE_STUDY", "FEEDRATE_TRIAL"
STUDY_NAME = "search"  # each file holds one study
METRIC, PRUNER = "metric", "pruner"  # user attributes of the study
_LOCKED_S = 60  # several jobs write into one SQLite file
log = logging.getLogger("feedrate")


def reason_to_prune(epoch: int, metrics: Mapping[str, float], max_epochs: int) -> str:
    """Why training must end after this epoch (from 0), or an empty text, as outside a search.

    A study that cannot be used is a warning.
    """
    storage, number = os.environ.get(STORAGE_VARIABLE), os.environ.get(TRIAL_VARIABLE)
    if not storage or not number:
        return ""
    try:
        optuna = quiet_optuna()
        study = optuna.load_study(study_name=STUDY_NAME, storage=open_storage(Path(storage), new=False))
        metric = str(study.user_attrs[METRIC])
        if metric not in metrics:  # reported by the search at the end of the run
            return ""
        study.pruner = build("pruners", study.user_attrs[PRUNER])
        trial = optuna.trial.Trial(study, study.get_trials(deepcopy=False)[int(number)]._trial_id)
        trial.report(metrics[metric], epoch)
        if epoch + 1 < max_epochs and trial.should_prune():
            return f"stopped by the search: {metric}={metrics[metric]:.4g} is poor for epoch {epoch + 1}"
    except Exception as error:
        log.warning("epoch %d could not be reported to the search: %s", epoch + 1, error)
    return ""


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
    """One of optuna's samplers or pruners (`kind`), from the `name` of its class and its constructor's arguments."""
    quiet_optuna()
    arguments = {key: value for key, value in settings.items() if key != "name"}
    node = {"_target_": f"optuna.{kind}.{settings.get('name')}", **arguments}
    return targets.build(node, f"hydra.sweeper.{kind.removesuffix('s')}", {})
