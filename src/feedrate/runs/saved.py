"""Finds runs: the one to resume, those whose process has died, and a saved run with its configuration and record.

Imports neither torch nor (for a run folder that was not recorded) mlflow.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feedrate.config import ROOT, TrainerConfig, resolve_path
from feedrate.errors import UserError
from feedrate.runs.provenance import result_id
from feedrate.runs.run_folder import SUMMARY, RunFolder, living_owner, read_summary
from feedrate.tracking.journal import SILENT_END, run_id_of
from feedrate.validation import validate

if TYPE_CHECKING:
    from feedrate.tracking.recorded import RecordedRun

log = logging.getLogger("feedrate")
RESTORED = ROOT / "outputs/restored"  # folder for files from MLflow's artifacts


def find_run(resume: str, config: Mapping[str, Any], runs: Path) -> Path | None:
    """The folder of the run to resume; None where 'auto' finds no unfinished one, which is logged.

    `resume` is 'auto', a run folder, a checkpoint in one, or an MLflow run id. Searched are `runs` and outputs/.
    """
    if resume != "auto":
        if (folder := folder_named(resume) or folder_of_id(resume, runs)) is None:
            raise UserError(f"trainer.resume={resume}: no run folder, no checkpoint and no id of a run under outputs/")
        return folder
    wanted = result_id(config)
    for folder, summary in sorted(all_runs(runs), key=lambda run: str(run[1]["started"]), reverse=True):
        if summary.get("result_id") != wanted or summary.get("status") == "FINISHED":
            continue
        if any((folder / "checkpoints").glob("last*.pt")) and living_owner(folder) is None:
            return folder
    log.info("trainer.resume=auto: no unfinished run of this configuration; a new run begins")
    return None


def folder_named(path: str) -> Path | None:
    """The run folder at a path, or around the checkpoint at a path; None where there is no such path."""
    named = resolve_path(path)
    if named.is_file():
        return named.parent.parent
    return named if named.is_dir() else None


def folder_of_id(run_id: str, runs: Path) -> Path | None:
    """The folder of the run with an MLflow run id."""
    return next((f for f, summary in all_runs(runs) if run_id in (summary.get("run_id"), run_id_of(f))), None)


def all_runs(runs: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Folders of runs with their summaries: those in `runs`, and those under outputs/."""
    found = [(folder, read_summary(folder)) for folder in _folders(runs, SUMMARY)]
    return [(folder, summary) for folder, summary in found if "started" in summary]


def mark_dead_runs(runs: Path) -> list[Path]:
    """Marks runs and sweeps whose process died (left its lock) as KILLED, tidies up, and returns their folders."""
    dead = []
    sweeps = {path.parent for path in (ROOT / "outputs/sweeps").glob("*/lock")}
    for folder in sorted(_folders(runs, "lock") | sweeps):
        if living_owner(folder) is not None:
            continue
        try:
            owned = RunFolder(folder)
        except (UserError, OSError):  # resumed by another process just now, or not writable
            continue
        owned.tidy()
        summary = read_summary(folder)
        if summary.get("status") == "RUNNING":
            owned.write_summary({**summary, "status": "KILLED", "error": SILENT_END})
        if summary:
            dead.append(folder)
        owned.release()
    return dead


def _folders(runs: Path, holding: str) -> set[Path]:
    """Run folders that hold a file of that name."""
    patterns = ((runs, "*"), (ROOT / "outputs/runs", "*"), (ROOT / "outputs/sweeps", "*/*"))
    return {path.parent for root, pattern in patterns for path in root.glob(f"{pattern}/{holding}")}


def config_of_folder(folder: Path) -> dict[str, Any] | None:
    """The resolved configuration in a run folder; None if it is no run folder."""
    path = folder / ".hydra" / "config.yaml"
    return _parse_config(path.read_text(encoding="utf-8"), str(path), resolve=True) if path.is_file() else None


def _parse_config(text: str, name: str, resolve: bool) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError  # type: ignore[import-untyped]

    try:
        config = OmegaConf.to_container(OmegaConf.create(text), resolve=resolve, throw_on_missing=True)
    except (OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"{name}: cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict) or not isinstance(config.get("seed"), int):
        raise UserError(f"{name}: is no configuration of a run")
    return {str(key): value for key, value in config.items()}


@dataclass(frozen=True)
class SavedRun:
    """A run of the past: its configuration, files and record."""

    config: Mapping[str, Any]  # resolved; may name any class until `check_targets` has seen it
    folder: Path
    checkpoint: Path | None  # the file that was named, None where best or last is to be chosen
    run_id: str | None  # in MLflow, None if it was not recorded
    recorded: RecordedRun | None  # None where it was not recorded, or not in the present store
    summary: Mapping[str, Any]  # content of summary.json, empty if there is none

    @property
    def seed(self) -> int:
        """`seed` of its configuration."""
        return int(self.config["seed"])

    @property
    def trainer(self) -> TrainerConfig:
        """The group `trainer` of its configuration, checked."""
        checked: TrainerConfig = validate(TrainerConfig, self.config["trainer"], "trainer")
        return checked

    def with_changes(self, changes: Mapping[str, Mapping[str, Any]]) -> SavedRun:
        """The same run with other values of some keys, given by group."""
        groups = {group: {**(self.config.get(group) or {}), **keys} for group, keys in changes.items()}
        return replace(self, config={**self.config, **groups})


def find_saved(name: str, uri: str | None) -> SavedRun:
    """The run with this folder, checkpoint or MLflow run id (of the store `uri`); UserError if there is none."""
    folder = folder_named(name)
    if folder is not None:
        path = resolve_path(name)
        config, summary = config_of_folder(folder), read_summary(folder)
        if config is None:
            raise UserError(f"{path}: {folder} holds no .hydra/config.yaml; name a run folder or a checkpoint in one")
        run_id, recorded = summary.get("run_id"), None
        try:
            recorded = _recorded(uri, run_id) if uri and run_id else None
        except UserError as error:
            log.warning("note: the run's record in MLflow is not used: %s", str(error).splitlines()[0])
        return SavedRun(config, folder, path if path.is_file() else None, run_id, recorded, summary)
    if len(name) != 32 or not set(name) <= set("0123456789abcdef"):
        raise UserError(f"{name}: no run folder, no checkpoint, and no run id (32 hexadecimal digits)")
    recorded = _recorded(uri, name)
    folder = _folder_of(recorded)
    text = recorded.text("config.yaml")
    # resolved when it was recorded: an interpolation in it was not written by train.py
    config = config_of_folder(folder) if text is None else _parse_config(text, f"config.yaml of run {name}", False)
    if config is None:
        raise UserError(f"run {name} has no config.yaml among its artifacts; name a run of train.py, or a sweep's job")
    summary = read_summary(folder) or json.loads(recorded.text("summary.json") or "{}")
    return SavedRun(config, folder, None, name, recorded, summary)


def _recorded(uri: str | None, run_id: str) -> RecordedRun:
    from feedrate.tracking.recorded import RecordedRun

    return RecordedRun(uri, run_id)


def _folder_of(recorded: RecordedRun) -> Path:
    """The run folder, or a new one for a run whose folder is not on this machine."""
    if named := recorded.tags.get("feedrate.run_folder"):
        folder = resolve_path(named)
        if read_summary(folder).get("run_id", recorded.run_id) == recorded.run_id and (folder / "checkpoints").is_dir():
            return folder
    return RESTORED / recorded.run_id
