"""Which run to go on with, whether it may, and what differs; how a state is taken up again is the loop's affair."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from feedrate.config import resolve_path
from feedrate.errors import UserError
from feedrate.trainer import checkpoint
from feedrate.trainer.runs import folder_named, folder_of_id, newest_unfinished, tidy

log = logging.getLogger("feedrate")


def find_run(resume: str, result_id: str, runs: Path) -> Path | None:
    """The folder of the run to go on with, None where 'auto' finds no unfinished one.

    Args:
        resume: 'auto', a run folder, a checkpoint in one, or an MLflow run id.
        result_id: of the present configuration, which 'auto' looks for.
        runs: folder of run folders to search, besides those under outputs/.

    Raises:
        UserError: there is no such run.
    """
    if resume == "auto":
        return newest_unfinished(result_id, runs)
    folder = folder_named(resume) or folder_of_id(resume, runs)
    if folder is None:
        raise UserError(f"trainer.resume={resume}: no run folder, no checkpoint and no id of a run under outputs/")
    return folder


def load_state(resume: str, folder: Path) -> dict[str, Any]:
    """The state to go on from: the checkpoint that `resume` names, or the newest whole one of the folder.

    Raises:
        UserError: none is whole.
    """
    path = resolve_path(resume)
    if path.is_file():
        try:
            return checkpoint.load(path)
        except ValueError as error:
            raise UserError(f"trainer.resume: {error}; name another one, or the run folder") from error
    found, state, notes = checkpoint.newest(folder / "checkpoints")
    for note in notes:
        log.warning("note: %s", note)
    if found is None:
        raise UserError(f"trainer.resume: {folder} holds no whole checkpoint; leave trainer.resume out to start anew")
    return state


def adopt(fresh: Path, folder: Path) -> None:
    """Leaves the folder that Hydra has just made for this process, and writes the log on in the run's own.

    What a process that was killed has left half written there is removed.
    """
    tidy(folder)
    handlers = [h for name in ("feedrate", "feedrate.file") for h in logging.getLogger(name).handlers]
    for handler in {h for h in [*handlers, *logging.getLogger().handlers] if isinstance(h, logging.FileHandler)}:
        handler.acquire()
        handler.close()
        handler.baseFilename = str(folder / Path(handler.baseFilename).name)
        handler.mode = "a"
        handler.stream = handler._open()
        handler.release()
    if fresh != folder and (fresh / ".hydra").is_dir() and not (fresh / "summary.json").exists():
        shutil.rmtree(fresh)


def check_data(state: Mapping[str, Any], digest: str, allowed: bool) -> None:
    """Refuses to go on with other data: positions and order would be those of another data set."""
    if state["data_digest"] == digest:
        return
    text = f"the data has changed since the checkpoint (digest {state['data_digest'][:12]} then, {digest[:12]} now)"
    if not allowed:
        raise UserError(f"trainer.resume: {text}\nStart anew, or go on all the same with trainer.resume_changed=true")
    log.warning("note: %s", text)


def check_model(saved: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Refuses weights of another model, with the difference in names and shapes."""
    differences = [f"{name} {tuple(saved[name].shape)} is not there now" for name in saved if name not in present]
    differences += [f"{name} is new" for name in present if name not in saved]
    differences += [
        f"{name} was {tuple(saved[name].shape)}, is {tuple(present[name].shape)}"
        for name in saved
        if name in present and saved[name].shape != present[name].shape
    ]
    if differences:
        more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise UserError(f"trainer.resume: the model has changed: {'; '.join(differences[:3])}{more}")
