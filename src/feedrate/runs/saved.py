"""Finds a saved run by its id, folder or checkpoint: configuration, summary, and its record in MLflow.

Imports neither torch nor (for a run folder that was not recorded) mlflow.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feedrate.config import ROOT, TrainerConfig, common_keys, resolve_path
from feedrate.errors import UserError
from feedrate.runs.run_folder import read_summary
from feedrate.runs.runs import config_of_folder, folder_named, parse_config
from feedrate.validation import validate

if TYPE_CHECKING:
    from feedrate.tracking.recorded import RecordedRun

log = logging.getLogger("feedrate")
RESTORED = ROOT / "outputs/restored"  # folder for files from MLflow's artifacts
_RUN_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class SavedRun:
    """A run as it was left.

    Attributes:
        config: plain containers, resolved; may name any class until `check_targets` has seen it.
        folder: the run folder.
        checkpoint: the file that was named, None where best or last is to be chosen.
        run_id: in MLflow, None if it was not recorded.
        recorded: what MLflow holds of it; None where it was not recorded, or not in the present store.
        summary: content of summary.json, empty if there is none.
    """

    config: Mapping[str, Any]
    folder: Path
    checkpoint: Path | None
    run_id: str | None
    recorded: RecordedRun | None
    summary: Mapping[str, Any]

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @property
    def trainer(self) -> TrainerConfig:
        """The run's trainer settings; keys that an older run lacks have the defaults of conf/trainer/default.yaml."""
        from omegaconf import OmegaConf

        known = {**OmegaConf.load(ROOT / "conf/trainer/default.yaml"), **(self.config.get("trainer") or {})}
        keys = common_keys(TrainerConfig)
        checked: TrainerConfig = validate(TrainerConfig, {k: v for k, v in known.items() if k in keys}, "trainer")
        return checked

    def with_changes(self, changes: Mapping[str, Mapping[str, Any]]) -> SavedRun:
        """The same run with other values of some keys, given by group."""
        groups = {group: {**(self.config.get(group) or {}), **keys} for group, keys in changes.items()}
        return replace(self, config={**self.config, **groups})


def find_saved(name: str, uri: str | None) -> SavedRun:
    """The run with this folder, checkpoint or MLflow run id.

    Args:
        uri: the store in which run ids are looked up; None: in none.

    Raises:
        UserError: there is no such run, or its configuration is gone.
    """
    folder = folder_named(name)
    if folder is not None:
        path = resolve_path(name)
        summary = read_summary(folder)
        run_id = summary.get("run_id")
        recorded = _recorded(uri, str(run_id)) if run_id else None
        config = config_of_folder(folder)
        if config is None:
            raise UserError(f"{path}: {folder} holds no .hydra/config.yaml; name a run folder or a checkpoint in one")
        return SavedRun(config, folder, path if path.is_file() else None, run_id, recorded, summary)
    if not _RUN_ID.fullmatch(name):
        raise UserError(f"{name}: no run folder, no checkpoint, and no run id (32 hexadecimal digits)")
    from feedrate.tracking.recorded import RecordedRun

    recorded = RecordedRun(uri, name)
    folder = _folder(recorded)
    text = recorded.text("config.yaml")
    # resolved when it was recorded: an interpolation in it was not written by train.py
    config = (
        config_of_folder(folder) if text is None else parse_config(text, f"config.yaml of run {name}", resolve=False)
    )
    if config is None:
        if "feedrate.sweep_id" in recorded.tags:
            raise UserError(f"run {name} is a whole sweep ({recorded.name}); name one of its jobs, its child runs")
        raise UserError(f"run {name} has no config.yaml among its artifacts; it was not made by Feedrate's train.py")
    summary = read_summary(folder) or json.loads(recorded.text("summary.json") or "{}")
    return SavedRun(config, folder, None, name, recorded, summary)


def _recorded(uri: str | None, run_id: str) -> RecordedRun | None:
    """MLflow's record of a run that was found by its folder; a note where the present store has none."""
    if uri is None:
        return None
    from feedrate.tracking.recorded import RecordedRun

    try:
        return RecordedRun(uri, run_id)
    except UserError as error:
        log.warning("note: the run's record in MLflow is left aside: %s", str(error).splitlines()[0])
        return None


def _folder(recorded: RecordedRun) -> Path:
    """The run folder, or a new one for a run whose folder is not on this machine."""
    named = recorded.tags.get("feedrate.run_folder")
    if named:
        folder = resolve_path(named)
        if read_summary(folder).get("run_id", recorded.run_id) == recorded.run_id and (folder / "checkpoints").is_dir():
            return folder
    return RESTORED / recorded.run_id
