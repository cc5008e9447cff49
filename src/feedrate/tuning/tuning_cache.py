"""Tuned settings that are remembered for a dataset, a model and this machine: outputs/tuned/KEY.json.

tune.py writes them and uses them again; a run with loader=tuned takes the one that was found for its own dataset and
model. What is tuned is tune.py's affair.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from feedrate.config import ROOT, resolve_path
from feedrate.system.atomic_write import check_place, replace_shared_file, told

FOLDER = ROOT / "outputs/tuned"
OPTION = "tuned"  # of the group loader
TUNED = ("num_workers", "engine", "prefetch_factor", "pin_memory")
_COMPUTING = ("device", "precision", "compile", "num_threads", "channels_last", "matmul_precision", "deterministic")


@dataclass(frozen=True, kw_only=True)
class Remembered:
    """A setting that was found.

    Attributes:
        date: of the tuning.
        words: the setting, and what it reached.
        data_digest: of the data then.
        overrides: keys of the loader.
        option: the text of the file that was written.
    """

    date: str
    words: str
    data_digest: str
    overrides: Mapping[str, Any]
    option: str


def sought(overrides: Iterable[str]) -> list[str]:
    """Those of the overrides that set what tune.py finds."""
    return [one for one in overrides if one.partition("=")[0].lstrip("+") in {f"loader.{name}" for name in TUNED}]


def recall(config: Mapping[str, Any], folder: Path = FOLDER) -> Remembered | None:
    """What is remembered for this configuration on this machine.

    Args:
        config: resolved, with the groups dataset, loader, model and trainer.
    """
    try:
        return Remembered(**json.loads(_path(config, folder).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # none, or of another version
        return None


def check_folder(folder: Path = FOLDER) -> None:
    """That something can be remembered.

    Raises:
        UserError: the folder cannot be written.
    """
    with _told(folder):
        check_place(folder / "any")


def remember(config: Mapping[str, Any], found: Remembered, folder: Path = FOLDER) -> None:
    """Keeps it, in the place of an earlier one.

    Raises:
        UserError: the folder cannot be written.
    """
    with _told(folder):
        replace_shared_file(_path(config, folder), json.dumps(asdict(found), indent=2))


def data_and_model(config: Mapping[str, Any]) -> str:
    """Hash by which a data set with a model is known, 16 hexadecimal digits."""
    return _hash({"dataset": _dataset(config), "model": config["model"]})


def _told(folder: Path) -> contextlib.AbstractContextManager[None]:
    return told(str(folder), "what is found is kept there, so make room, or mend the folder")


def take(
    config: dict[str, Any],
    choices: Mapping[str, str],
    overrides: Iterable[str],
    folder: Path = FOLDER,
    written: Path | None = None,
) -> str:
    """Gives a run with loader=tuned the setting of its own dataset and model; what to say of it, empty for nothing.

    A key of the setting that was typed is a person's own word, so then nothing is taken.

    Args:
        config: resolved; its group loader is changed.
        choices: option of each group.
        overrides: as typed.
        written: the file in which the run's folder keeps its configuration, changed as well.
    """
    typed = {override.lstrip("+~").partition("=")[0] for override in overrides}
    if choices.get("loader") != OPTION or typed & {f"loader.{key}" for key in TUNED}:
        return ""
    if (found := recall(config, folder)) is None:
        return (
            "note: loader=tuned was not tuned for this dataset, model and machine; src/tune.py with the same dataset, "
            "model and loader finds what is"
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

    about = {
        "dataset": _dataset(config),
        "model": config["model"],
        "loader": {key: value for key, value in config["loader"].items() if key not in TUNED},
        "trainer": {key: config["trainer"][key] for key in _COMPUTING if key in config["trainer"]},
        "machine": [platform.node(), usable_cores(), psutil.virtual_memory().total],
    }
    return folder / f"{_hash(about)}.json"


def _dataset(config: Mapping[str, Any]) -> dict[str, Any]:
    dataset = {key: value for key, value in config["dataset"].items() if key != "name"}
    if dataset.get("root"):
        dataset["root"] = str(resolve_path(dataset["root"]))
    return dataset


def _hash(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:16]
