"""From a run's id, its folder or a checkpoint to its configuration, its data, and its model with weights.

What is then done with them is the caller's affair; which run a training goes on with is decided in resume.py.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from feedrate.cli.allowed import check_targets
from feedrate.config import ROOT, resolve_path, timeout_of
from feedrate.dataset import Data, build_data
from feedrate.errors import UserError
from feedrate.loader import build_loaders, start_loaders
from feedrate.runs.provenance import has_commit
from feedrate.runs.runs import folder_named, read_summary
from feedrate.trainer import checkpoint
from feedrate.trainer.assemble import build_model
from feedrate.trainer.unlabelled import data_of, unlabelled
from feedrate.validation import yaml_fault

if TYPE_CHECKING:
    from feedrate.tracking.recorded import RecordedRun

log = logging.getLogger("feedrate")
_RUN_ID = re.compile(r"[0-9a-f]{32}")
_RESTORED = "outputs/restored"  # folder of what is fetched from MLflow's artifacts
_GROUPS = ("dataset", "loader", "model")  # what is built here; nothing else of a foreign configuration is


@dataclass(frozen=True)
class SavedRun:
    """A run as it was left.

    Attributes:
        config: plain containers, resolved; foreign until `check_targets` has seen it.
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

    def with_changes(self, changes: Mapping[str, Mapping[str, Any]]) -> SavedRun:
        """The same run with other values of some keys, given by group."""
        groups = {group: {**(self.config.get(group) or {}), **keys} for group, keys in changes.items()}
        return replace(self, config={**self.config, **groups})


@dataclass(frozen=True)
class Settings:
    """Keys of the run's trainer that decide what an evaluation gives; those that an older run lacks are off."""

    seed: int
    num_threads: int | None
    device: str
    precision: str | int
    label_smoothing: float
    top5: bool
    channels_last: bool
    matmul_precision: str
    deterministic: bool


def settings_of(saved: SavedRun) -> Settings:
    trainer = saved.config.get("trainer") or {}
    off: dict[str, Any] = {
        "num_threads": None,
        "device": "auto",
        "precision": "auto",
        "label_smoothing": 0.0,
        "top5": False,
        "channels_last": False,
        "matmul_precision": "highest",
        "deterministic": False,
    }
    return Settings(_seed(saved), **{key: trainer.get(key, value) for key, value in off.items()})


def find_saved(name: str, uri: str | None) -> SavedRun:
    """The run that `name` means.

    Args:
        name: a run folder, a checkpoint in one, or MLflow's run id.
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
            raise UserError(
                f"{path}: {folder} holds no .hydra/config.yaml, so it is no run folder; "
                "checkpoints are used from the folder of their run"
            )
        return SavedRun(config, folder, path if path.is_file() else None, run_id, recorded, summary)
    if not _RUN_ID.fullmatch(name):
        raise UserError(f"{name}: no run folder, no checkpoint, and no run id (32 hexadecimal digits)")
    from feedrate.tracking.recorded import RecordedRun

    recorded = RecordedRun(uri, name)
    folder = _folder(recorded)
    text = recorded.text("config.yaml")
    # resolved when it was recorded: what still refers to anything was not written by train.py
    config = config_of_folder(folder) if text is None else _parse(text, f"config.yaml of run {name}", resolve=False)
    if config is None:
        if "feedrate.sweep_id" in recorded.tags:
            raise UserError(f"run {name} is a whole sweep ({recorded.name}); name one of its jobs, its child runs")
        raise UserError(f"run {name} has no config.yaml among its artifacts; it was not made by Feedrate's train.py")
    return SavedRun(config, folder, None, name, recorded, read_summary(folder))


def load_weights(saved: SavedRun, weights: str) -> tuple[Path, dict[str, Any]]:
    """The checkpoint of a run and the state in it.

    Args:
        weights: 'best' or 'last', where the run's name was no checkpoint.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = saved.checkpoint or saved.folder / "checkpoints" / f"{weights}.pt"
    if not path.is_file() and saved.recorded is not None:
        path = saved.recorded.download(f"checkpoints/{weights}.pt", saved.folder) or path
    if not path.is_file():
        other = "last" if weights == "best" else "best"
        raise UserError(f"{path}: there is no such checkpoint; try weights={other}")
    try:
        state = checkpoint.load(path)
    except Exception as error:  # a damaged or foreign file fails in many ways, none of them the program's fault
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].removeprefix(f"{path}: ")
        raise UserError(f"{path}: cannot be read as a checkpoint: {reason}") from error
    if not isinstance(state.get("model"), Mapping) or "data_digest" not in state:
        raise UserError(f"{path}: is no checkpoint of Feedrate; name one under a run folder's checkpoints/")
    return path, state


def open_data(
    saved: SavedRun, state: Mapping[str, Any], allow: Collection[str], other_data: bool, *, elsewhere: bool = False
) -> Data:
    """The run's datasets, after every target of its configuration was found on the allow-list.

    Args:
        elsewhere: they are in a folder that was named now, which is not ours to write into; the run's own may be made.

    Raises:
        UserError: a target is not allowed, or the data is not what the run was trained with.
    """
    _check_nodes(saved, allow)
    timeout = timeout_of(saved.config["loader"])
    data = build_data(saved.config["dataset"], _seed(saved), prepare=not elsewhere, timeout=timeout)
    if data.digest != state["data_digest"]:
        then, now = str(state["data_digest"])[:12], data.digest[:12]
        text = f"the data is not that of the run (digest {then} then, {now} now)"
        if not other_data:
            raise UserError(f"{data.source}: {text}\nGive the run's data, or accept this with other_data=true")
        log.info("note: %s", text)
    return data


def open_folder(saved: SavedRun, state: Mapping[str, Any], root: str, allow: Collection[str]) -> Data:
    """The samples of another folder, as the partition 'train' of data that is else that of the run.

    Raises:
        UserError: a target is not allowed, or the folder has no sample; for checkpoints that do not say what the data
            was, also when the run's own data is gone.
    """
    _check_nodes(saved, allow)
    data = data_of(state["data"]) if "data" in state else open_data(saved, state, allow, other_data=False)
    return unlabelled(saved.config["dataset"], resolve_path(root), data, _seed(saved))


def choose_partition(data: Data, wanted: str | None) -> str:
    """`wanted`, or 'test' if there is one, or 'validation'.

    Raises:
        UserError: the data has no such partition.
    """
    if wanted is None:
        return "test" if "test" in data.partition else "validation"
    if wanted not in data.partition:
        raise UserError(f"partition={wanted}: {data.name} has none; it has {', '.join(data.partition)}")
    return wanted


def open_loader(saved: SavedRun, data: Data, partition: str, device: torch.device) -> Any:
    """Goes through one partition once, in its own order; its workers run from now on, before the device is used."""
    node = {**saved.config["loader"], "shuffle": False, "drop_last": False}
    loader = build_loaders(node, data, _seed(saved), device)[partition]
    loader.set_epoch(0, then=None)  # the same random numbers as in every validation of the run
    start_loaders({partition: loader}, (partition,), data)
    return loader


def load_model(saved: SavedRun, state: Mapping[str, Any], data: Data, device: torch.device) -> nn.Module:
    """The model with its weights, in evaluation mode.

    Raises:
        UserError: the weights do not fit the model.
    """
    model = build_model(saved.config["model"], data, device, settings_of(saved).channels_last)
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise UserError(
            f"model: the checkpoint's weights do not fit {type(model).__name__}: {(lines[1:] or lines)[0]}"
        ) from error
    return model.eval()


def _check_nodes(saved: SavedRun, allow: Collection[str]) -> None:
    check_targets({group: saved.config.get(group) for group in _GROUPS}, allow, own=_was_made_here(saved))
    for group in _GROUPS:
        node = saved.config.get(group)
        if not isinstance(node, Mapping) or "_target_" not in node:
            raise UserError(f"{group}: the run's configuration has no {group}._target_, so nothing can be built")


def _was_made_here(saved: SavedRun) -> bool:
    """Whether this repository made the run: its folder lies here, or its commit is one of this repository."""
    if saved.folder.is_relative_to(ROOT) and not saved.folder.is_relative_to(ROOT / _RESTORED):
        return True
    tags = saved.recorded.tags if saved.recorded is not None else {}
    return has_commit(str(saved.summary.get("commit") or tags.get("git.commit")))


def _seed(saved: SavedRun) -> int:
    return int(saved.config["seed"])


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
    return ROOT / _RESTORED / recorded.run_id


def config_of_folder(folder: Path) -> dict[str, Any] | None:
    """What a run was configured with, resolved, from its folder; None if that is no run folder.

    Raises:
        UserError: it cannot be read.
    """
    path = folder / ".hydra" / "config.yaml"
    return _parse(path.read_text(encoding="utf-8"), str(path), resolve=True) if path.is_file() else None


def _parse(text: str, name: str, resolve: bool) -> dict[str, Any]:
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
