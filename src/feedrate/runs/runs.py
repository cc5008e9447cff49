"""Finds runs: the one to resume, one by its id or path, and those whose process has died.

Imports neither torch nor mlflow.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from feedrate.config import ROOT, resolve_path
from feedrate.errors import UserError
from feedrate.runs.provenance import changes, deciding, result_id
from feedrate.runs.run_folder import SUMMARY, RunFolder, living_owner, read_summary
from feedrate.system.secrets import masked
from feedrate.system.text import flatten
from feedrate.tracking.journal import SILENT_END, run_id_of
from feedrate.validation import yaml_fault

log = logging.getLogger("feedrate")


def find_run(resume: str, config: Mapping[str, Any], command: str, runs: Path) -> Path | None:
    """The folder of the run to resume; None where 'auto' finds no unfinished one, which is logged with the reason.

    Args:
        resume: 'auto', a run folder, a checkpoint in one, or an MLflow run id.
        config: the present configuration, resolved; 'auto' looks for one with the same result.
        command: the present one, as runs record it.
        runs: folder of run folders to search, besides those under outputs/.

    Raises:
        UserError: there is no such run.
    """
    if resume != "auto":
        folder = folder_named(resume) or folder_of_id(resume, runs)
        if folder is None:
            raise UserError(f"trainer.resume={resume}: no run folder, no checkpoint and no id of a run under outputs/")
        return folder
    in_use, other = "", ""
    for folder, summary in sorted(all_runs(runs), key=lambda run: str(run[1]["started"]), reverse=True):
        if summary.get("status") == "FINISHED" or not any((folder / "checkpoints").glob("last*.pt")):
            continue
        owner = living_owner(folder)
        if summary.get("result_id") == result_id(config):
            if owner is None:
                return folder
            in_use = in_use or f"process {owner} is at the unfinished run {folder} now"
        elif owner is None and not other and _without_resume(str(summary.get("command"))) == _without_resume(command):
            changed = _changes_since(folder, config)
            other = f"{folder} is an unfinished run of this command, but its configuration was another: {changed}"
    why = in_use or other or "no unfinished run of this configuration"
    log.info("trainer.resume=auto: %s; a new run begins", why)
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
    """Marks runs and sweeps whose process died as KILLED, and removes what it left half written.

    A run that ends in order removes its lock, so only folders with a lock are looked at.

    Returns:
        Folders of runs whose end the tracker may not know.
    """
    dead = []
    sweeps = {path.parent for path in (ROOT / "outputs/sweeps").glob("*/lock")}
    for folder in sorted(_folders(runs, "lock") | sweeps):
        try:
            if living_owner(folder) is not None:
                continue
            owned = RunFolder(folder)
        except (UserError, OSError):  # resumed by another process just now, or not writable
            continue
        try:
            owned.tidy()
            summary = read_summary(folder)
            if summary.get("status") == "RUNNING":
                owned.write_summary({**summary, "status": "KILLED", "error": SILENT_END})
            if summary:
                dead.append(folder)
        finally:
            owned.release()
    return dead


def config_of_folder(folder: Path) -> dict[str, Any] | None:
    """The resolved configuration in a run folder; None if it is no run folder."""
    path = folder / ".hydra" / "config.yaml"
    return parse_config(path.read_text(encoding="utf-8"), str(path), resolve=True) if path.is_file() else None


def parse_config(text: str, name: str, resolve: bool) -> dict[str, Any]:
    """A run's configuration from YAML; `name` is for the error."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import MarkedYAMLError, YAMLError  # type: ignore[import-untyped]

    try:
        config = OmegaConf.to_container(OmegaConf.create(text), resolve=resolve, throw_on_missing=True)
    except (OmegaConfBaseException, YAMLError) as error:
        reason = yaml_fault(error) if isinstance(error, MarkedYAMLError) else str(error).splitlines()[0]
        raise UserError(f"{name}: cannot be read: {reason}") from error
    if not isinstance(config, dict) or not isinstance(config.get("seed"), int):
        raise UserError(f"{name}: is no configuration of a run")
    return {str(key): value for key, value in config.items()}


def _changes_since(folder: Path, config: Mapping[str, Any]) -> str:
    try:
        then = config_of_folder(folder)
    except UserError:
        then = None
    return changes(*(flatten(masked(deciding(one))) for one in (then, config))) if then else "it cannot be read"


def _without_resume(command: str) -> str:
    return " ".join(word for word in command.split(" ") if not word.lstrip("'").startswith("trainer.resume="))


def _folders(runs: Path, holding: str) -> set[Path]:
    """Run folders that hold a file of that name."""
    patterns = ((runs, "*"), (ROOT / "outputs/runs", "*"), (ROOT / "outputs/sweeps", "*/*"))
    return {path.parent for root, pattern in patterns for path in root.glob(f"{pattern}/{holding}")}
