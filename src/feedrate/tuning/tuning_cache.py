"""Tuned settings by dataset, model and machine: outputs/tuned/KEY.json, written by tune.py, read by loader=tuned."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from feedrate.config import ROOT, resolve_path
from feedrate.system.atomic_write import check_place, replace_shared_file, writing

FOLDER = ROOT / "outputs/tuned"
OPTION = "tuned"  # of the group loader
TUNED = ("num_workers", "engine", "prefetch_factor", "pin_memory")
_COMPUTING = ("device", "precision", "compile", "num_threads", "channels_last", "matmul_precision", "deterministic")
_REMEDY = "make room there or fix its permissions"


@dataclass(frozen=True, kw_only=True)
class CachedSetting:
    """A tuned setting.

    Attributes:
        date: of the tuning.
        words: the setting and its rate.
        data_digest: of the data then.
        overrides: keys of the loader.
        option: text of the option's file.
    """

    date: str
    words: str
    data_digest: str
    overrides: Mapping[str, Any]
    option: str


def tuned_overrides(overrides: Iterable[str]) -> list[str]:
    """The overrides of keys that are tuned."""
    return [one for one in overrides if one.partition("=")[0].lstrip("+~") in {f"loader.{key}" for key in TUNED}]


def load(config: Mapping[str, Any], folder: Path = FOLDER) -> CachedSetting | None:
    """The tuned setting of this configuration on this machine, if any.

    Args:
        config: resolved, with the groups dataset, loader, model and trainer.
    """
    try:
        return CachedSetting(**json.loads(_path(config, folder).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # none, or of another version
        return None


def check_folder(folder: Path = FOLDER) -> None:
    """Checks that the cache can be written.

    Raises:
        UserError: it cannot.
    """
    with writing(str(folder), _REMEDY):
        check_place(folder / "any")


def save(config: Mapping[str, Any], found: CachedSetting, folder: Path = FOLDER) -> None:
    """Stores a tuned setting.

    Raises:
        UserError: the folder cannot be written.
    """
    with writing(str(folder), _REMEDY):
        replace_shared_file(_path(config, folder), json.dumps(asdict(found), indent=2))


def take(
    config: dict[str, Any],
    choices: Mapping[str, str],
    overrides: Iterable[str],
    folder: Path = FOLDER,
    written: Path | None = None,
) -> str:
    """Applies the tuned setting of a run with loader=tuned, unless one of its keys was typed; returns a message.

    Args:
        config: resolved; its group loader is changed.
        choices: option of each group.
        overrides: as typed.
        written: the configuration file in the run folder, changed as well.
    """
    if choices.get("loader") != OPTION or tuned_overrides(overrides):
        return ""
    if (found := load(config, folder)) is None:
        return (
            "note: loader=tuned was not tuned for this dataset, model and machine; run src/tune.py with the same "
            "dataset, model and loader"
        )
    config["loader"] = {**config["loader"], **found.overrides}
    if written is not None and written.is_file():
        kept = OmegaConf.load(written)
        kept.loader.update(found.overrides)
        OmegaConf.save(kept, written)
    return f"loader=tuned: {found.words}, found on {found.date} for this dataset and model"


def _path(config: Mapping[str, Any], folder: Path) -> Path:
    import psutil

    from feedrate.system.cores import usable_cores

    dataset = {key: value for key, value in config["dataset"].items() if key != "name"}
    if dataset.get("root"):
        dataset["root"] = str(resolve_path(dataset["root"]))
    key = {
        "dataset": dataset,
        "model": config["model"],
        "loader": {key: value for key, value in config["loader"].items() if key not in TUNED},
        "trainer": {key: config["trainer"][key] for key in _COMPUTING if key in config["trainer"]},
        "machine": [platform.node(), usable_cores(), psutil.virtual_memory().total],
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
    return folder / f"{digest[:16]}.json"
