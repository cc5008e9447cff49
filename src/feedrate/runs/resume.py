"""Which run to go on with, whether it may, and what differs; how a state is taken up again is the loop's affair."""

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
from feedrate.runs.provenance import changes, deciding, flat, result_id
from feedrate.runs.restore import config_of_folder
from feedrate.runs.run_folder import living_owner
from feedrate.runs.runs import Unfinished, folder_named, folder_of_id, tidy, unfinished
from feedrate.tracking import masked
from feedrate.trainer import checkpoint
from feedrate.trainer.schedule import Schedule
from feedrate.trainer.unlabelled import facts_of
from feedrate.validation import as_yaml

log = logging.getLogger("feedrate")
_CHECKED = ("optimizer.", "scheduler", "loader.shuffle", *(f"trainer.{key}" for key in ("max_", "early_stopping")))


def find_run(resume: str, config: Mapping[str, Any], command: str, runs: Path) -> Path | None:
    """The folder of the run to go on with, None where 'auto' finds no unfinished one, which is said.

    Args:
        resume: 'auto', a run folder, a checkpoint in one, or an MLflow run id.
        config: the present configuration, resolved; 'auto' looks for one that can only have the same result.
        command: the present one, as runs record it.
        runs: folder of run folders to search, besides those under outputs/.

    Raises:
        UserError: there is no such run.
    """
    if resume == "auto":
        found = unfinished(result_id(config), command, runs)
        if found.free is None:
            log.info("trainer.resume=auto: %s; a new run begins", _why_none(found, config))
        return found.free
    folder = folder_named(resume) or folder_of_id(resume, runs)
    if folder is None:
        raise UserError(f"trainer.resume={resume}: no run folder, no checkpoint and no id of a run under outputs/")
    return folder


def _why_none(found: Unfinished, config: Mapping[str, Any]) -> str:
    if found.used is not None:
        return f"process {living_owner(found.used)} is at the unfinished run {found.used} now"
    if found.of_command is not None:
        try:
            then = config_of_folder(found.of_command)
        except UserError:
            then = None
        changed = changes(*(flat(masked(deciding(one))) for one in (then, config))) if then else "it cannot be read"
        return f"{found.of_command} is an unfinished run of this command, but its configuration was another: {changed}"
    return "no unfinished run of this configuration"


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


def check_config(state: Mapping[str, Any], folder: Path, config: Mapping[str, Any]) -> None:
    """Refuses another seed; says which other settings that change the result are not those that the run began with.

    Settings with a check of their own are left out: of optimizer and scheduler, and of what ends training.

    Args:
        state: of the checkpoint.
        folder: of the run.
        config: the present configuration, resolved.

    Raises:
        UserError: the seed is another one.
    """
    try:
        then = config_of_folder(folder) or {}
    except UserError:
        then = {}
    began = (state["loader"] or then).get("seed", config["seed"])
    if began != config["seed"]:
        raise UserError(
            f"trainer.resume: the run began with seed={began}, and seed={config['seed']} would give another order of "
            f"samples; set seed={began}, or start anew"
        )
    if not then:
        return
    kept, present = (
        {key: value for key, value in flat(masked(deciding(one))).items() if not key.startswith(_CHECKED)}
        for one in (then, config)
    )
    if changed := changes(kept, present):
        log.warning("note: from here on with other settings than the run began with: %s", changed)


def check_data(state: dict[str, Any], data: Data, allowed: bool) -> None:
    """Refuses to go on with other data: positions and order would be those of another data set.

    Args:
        allowed: then it is said, and where the number of samples is another one the state loses its position.

    Raises:
        UserError: with what is different.
    """
    if state["data_digest"] == data.digest:
        return
    size = len(data.partition["train"])  # type: ignore[arg-type]
    then = {**state.get("data", {}), **({"training samples": state["loader"]["samples"]} if state["loader"] else {})}
    now = {**facts_of(data), "training samples": size}
    different = [f"{key} {_brief(then[key])} then, {_brief(now[key])} now" for key in then if then[key] != now.get(key)]
    said = "; ".join(different[:3]) or f"other IDs, labels or files; digest {state['data_digest'][:12]} then"
    text = (
        f"the data has changed since the checkpoint ({said}{', ' if different else '; '}digest {data.digest[:12]} now)"
    )
    if not allowed:
        raise UserError(f"trainer.resume: {text}\nStart anew, or go on all the same with trainer.resume_changed=true")
    log.warning("note: %s", text)
    if state["loader"] and state["loader"]["samples"] != size:
        state["loader"] = None


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


def check_optimizer(state: Mapping[str, Any], optimizer: torch.optim.Optimizer, schedule: Schedule) -> None:
    """Refuses the state of another kind of optimizer; says which settings of now are not used.

    Args:
        state: of the checkpoint.
        optimizer, schedule: as they are configured now.
    """
    ours, theirs = optimizer.state_dict()["param_groups"], state["optimizer"]["param_groups"]
    if len(ours) != len(theirs) or any(set(a) != set(b) for a, b in zip(ours, theirs, strict=True)):
        raise UserError(
            "trainer.resume: the optimizer or the scheduler has changed; start anew, set the former ones, or go on "
            "with those of now: trainer.resume_optimizer=false"
        )
    now, then = ours[0], theirs[0]
    kept = schedule.kept(state["schedule"])
    for key in optimizer.defaults:
        # a scheduler changes some of them; what was set then stands beside, but for ReduceLROnPlateau's rate
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


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:39]}…"
