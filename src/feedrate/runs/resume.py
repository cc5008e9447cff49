"""Resumes a run: its newest whole checkpoint, and checks that configuration, data and optimizer fit it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from feedrate.config import resolve_path
from feedrate.dataset import Data
from feedrate.errors import UserError
from feedrate.runs.provenance import changes, deciding
from feedrate.runs.saved import config_of_folder
from feedrate.system.secrets import masked
from feedrate.system.text import flatten
from feedrate.trainer import checkpoint
from feedrate.trainer.schedule import LENGTH
from feedrate.validation import as_yaml

log = logging.getLogger("feedrate")
_APPLY = ("trainer.max_", "trainer.early_stopping", "loader.shuffle")  # taken as they are now, or checked elsewhere


def load_state(resume: str, folder: Path) -> dict[str, Any]:
    """The checkpoint that `resume` names, or the newest undamaged one of the folder."""
    path = resolve_path(resume)
    state = checkpoint.load(path) if path.is_file() else checkpoint.newest(folder / "checkpoints")
    if state is None:
        raise UserError(f"trainer.resume: {folder} holds no whole checkpoint; leave trainer.resume out to start again")
    return state


def move_log(fresh: Path, folder: Path) -> None:
    """Continues the log in the run's own folder, and removes the one that Hydra has made for this process."""
    for logger in (logging.getLogger(), logging.getLogger("feedrate"), logging.getLogger("feedrate.file")):
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler) and Path(handler.baseFilename).parent != folder:
                handler.close()  # opened again by the next message
                handler.baseFilename, handler.mode = str(folder / Path(handler.baseFilename).name), "a"
    if fresh != folder and (fresh / ".hydra").is_dir() and not (fresh / "summary.json").exists():
        shutil.rmtree(fresh)


def check_config(state: Mapping[str, Any], folder: Path, config: Mapping[str, Any]) -> None:
    """Refuses another seed with a UserError; logs which other settings differ that change the result."""
    then = config_of_folder(folder)
    began = (state["loader"] or then or config).get("seed", config["seed"])
    if began != config["seed"]:
        raise UserError(
            f"trainer.resume: the run began with seed={began}, and seed={config['seed']} would give another order of "
            f"samples; set seed={began}, or start a new run"
        )
    if then is None:
        return
    former, present = (flatten(masked(deciding(one))) for one in (then, config))
    restored: set[str] = set()  # settings that the checkpoint brings back
    if config["trainer"]["resume_optimizer"]:
        names = state["optimizer"]["param_groups"][0].keys() | state["schedule"].keys()
        restored = {f"{group}.{name}" for group in ("optimizer", "scheduler") for name in names - {"fused", *LENGTH}}
    for key in sorted(restored & present.keys() & former.keys()):
        if present[key] != former[key]:
            log.warning(
                "note: %s=%s is not used: the run keeps %s, as its checkpoint has it; "
                "trainer.resume_optimizer=false takes what is set now", key, as_yaml(present[key]), as_yaml(former[key])
            )  # fmt: skip
    kept = (
        {k: v for k, v in one.items() if k not in restored and not k.startswith(_APPLY)} for one in (former, present)
    )
    if changed := changes(*kept):
        log.warning("note: from here on with other settings than the run began with: %s", changed)


def check_data(state: dict[str, Any], data: Data, allowed: bool) -> None:
    """Refuses other data with a UserError, or, where they are allowed, logs the difference.

    With another number of samples the state loses its position.
    """
    if state["data_digest"] == data.digest:
        return
    then = (state["loader"] or {}).get("samples", "an unknown number")
    now = len(data.partition["train"])  # type: ignore[arg-type]
    text = (
        f"the data has changed since the checkpoint (training samples {then} then, {now} now; "
        f"digest {state['data_digest'][:12]} then, {data.digest[:12]} now)"
    )
    if not allowed:
        raise UserError(f"trainer.resume: {text}\nStart a new run, or accept this with trainer.resume_changed=true")
    log.warning("note: %s", text)
    if then != now:
        state["loader"] = None


def check_optimizer(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Refuses the state of another kind of optimizer with a UserError."""
    ours, theirs = optimizer.state_dict()["param_groups"], state["optimizer"]["param_groups"]
    if [set(group) for group in ours] != [set(group) for group in theirs]:
        raise UserError(
            "trainer.resume: the optimizer or the scheduler has changed; start a new run, set the former ones, or "
            "begin with those of now: trainer.resume_optimizer=false"
        )
