"""Resumes a run: its newest whole checkpoint, and checks that configuration, data, model and optimizer fit it."""

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
from feedrate.runs.runs import config_of_folder
from feedrate.system.secrets import masked
from feedrate.system.text import flatten
from feedrate.trainer import checkpoint
from feedrate.trainer.schedule import Schedule
from feedrate.trainer.unlabelled import facts_of
from feedrate.validation import as_yaml

log = logging.getLogger("feedrate")
# settings with a check of their own, or none: they only decide when training ends
_CHECKED = ("optimizer.", "scheduler", "loader.shuffle", *(f"trainer.{key}" for key in ("max_", "early_stopping")))


def load_state(resume: str, folder: Path) -> dict[str, Any]:
    """The checkpoint that `resume` names, or the newest undamaged one of the folder."""
    path = resolve_path(resume)
    if path.is_file():
        try:
            return checkpoint.load(path)
        except ValueError as error:
            raise UserError(f"trainer.resume: {error}") from error
    found, state, notes = checkpoint.newest(folder / "checkpoints")
    for note in notes:
        log.warning("note: %s", note)
    if found is None:
        raise UserError(f"trainer.resume: {folder} holds no whole checkpoint; leave trainer.resume out to start again")
    return state


def move_log(fresh: Path, folder: Path) -> None:
    """Continues the log in the run's own folder, and removes the one that Hydra has made for this process."""
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


def check_config(state: Mapping[str, Any], folder: Path, config: Mapping[str, Any]) -> None:
    """Refuses another seed with a UserError; logs which other settings differ that change the result."""
    try:
        then = config_of_folder(folder) or {}
    except UserError:
        then = {}
    began = (state["loader"] or then).get("seed", config["seed"])
    if began != config["seed"]:
        raise UserError(
            f"trainer.resume: the run began with seed={began}, and seed={config['seed']} would give another order of "
            f"samples; set seed={began}, or start a new run"
        )
    if not then:
        return
    kept, present = (
        {key: value for key, value in flatten(masked(deciding(one))).items() if not key.startswith(_CHECKED)}
        for one in (then, config)
    )
    if changed := changes(kept, present):
        log.warning("note: from here on with other settings than the run began with: %s", changed)


def check_data(state: dict[str, Any], data: Data, allowed: bool) -> None:
    """Refuses other data with a UserError: positions and order would be those of another data set.

    Args:
        allowed: log the difference instead; with another number of samples the state loses its position.
    """
    if state["data_digest"] == data.digest:
        return
    size = len(data.partition["train"])  # type: ignore[arg-type]
    then = {**state.get("data", {}), **({"training samples": state["loader"]["samples"]} if state["loader"] else {})}
    now = {**facts_of(data), "training samples": size}
    different = [
        f"{key} {str(then[key])[:40]} then, {str(now[key])[:40]} now" for key in then if then[key] != now.get(key)
    ]
    what = "; ".join(different[:3]) or f"other IDs, labels or files; digest {state['data_digest'][:12]} then"
    text = f"the data has changed since the checkpoint ({what}, digest {data.digest[:12]} now)"
    if not allowed:
        raise UserError(f"trainer.resume: {text}\nStart a new run, or accept this with trainer.resume_changed=true")
    log.warning("note: %s", text)
    if state["loader"] and state["loader"]["samples"] != size:
        state["loader"] = None


def check_optimizer(state: Mapping[str, Any], optimizer: torch.optim.Optimizer, schedule: Schedule) -> None:
    """Refuses the state of another kind of optimizer with a UserError; logs which present settings are not used."""
    ours, theirs = optimizer.state_dict()["param_groups"], state["optimizer"]["param_groups"]
    if len(ours) != len(theirs) or any(set(a) != set(b) for a, b in zip(ours, theirs, strict=True)):
        raise UserError(
            "trainer.resume: the optimizer or the scheduler has changed; start a new run, set the former ones, or "
            "begin with those of now: trainer.resume_optimizer=false"
        )
    now, then = ours[0], theirs[0]
    kept = schedule.kept(state["schedule"])
    for key in optimizer.defaults:
        # schedulers change some keys, and keep what was set as max_lr or initial_lr, except ReduceLROnPlateau
        stated = next((name for name in ("max_lr", "initial_lr") if key == "lr" and name in now), key)
        changed_by_schedule = (stated == "lr" and state["schedule"]) or (
            key in ("betas", "momentum") and "base_momentum" in now
        )
        if key in now and not changed_by_schedule and _plain(then[stated]) != _plain(now[stated]):
            kept[f"optimizer.{key}"] = (then[stated], now[stated])
    for key, (was, typed) in kept.items():
        log.warning(
            "note: %s=%s is not used: the run goes on with %s, as its checkpoint has it; "
            "trainer.resume_optimizer=false takes what is set now", key, as_yaml(_plain(typed)), as_yaml(_plain(was)),
        )  # fmt: skip


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value
