"""What is done with a run afterwards: its configuration as Hydra keeps it, and entry points in the tests' process."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from feedrate.cli.launch import CONF, _register_resolvers

CLASSES = {"0": "zero", "1": "one", "2": "two"}


def with_config(summary: dict[str, Any]) -> Path:
    """The run folder, with the .hydra/config.yaml that Hydra would have written."""
    folder: Path = summary["folder"]
    config = compose("train", shlex.split(summary["command"])[2:])
    (folder / ".hydra").mkdir()
    OmegaConf.save(config, folder / ".hydra" / "config.yaml")
    return folder


def call(entry: Callable[[DictConfig], Any], name: str, *overrides: str) -> Any:
    """An entry point with conf/`name`.yaml, in this process."""
    _register_resolvers()
    return entry(compose(name, list(overrides)))


def compose(name: str, overrides: list[str], **options: Any) -> DictConfig:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(name, overrides, **options)


def with_test_partition(digits: Path, root: Path) -> Path:
    """A dataset folder of 120 digits of three classes, whose names are texts, a fifth of them to test on."""
    root.mkdir()
    labels = {ID: str(label) for ID, label in json.loads((digits / "labels.json").read_text()).items()}
    IDs = [ID for ID in sorted(labels) if labels[ID] in CLASSES][:120]
    for ID in IDs:
        shutil.copy(digits / f"{ID}.pt", root)
    parts = {"train": IDs[:72], "validation": IDs[72:96], "test": IDs[96:]}
    (root / "partition.json").write_text(json.dumps(parts))
    (root / "labels.json").write_text(json.dumps({ID: CLASSES[labels[ID]] for ID in IDs}))
    return root


@contextmanager
def composed_with_hydra(name: str, *overrides: str, folder: Path | None = None) -> Iterator[DictConfig]:
    """The configuration of a job, with Hydra's own in HydraConfig.

    Args:
        folder: Hydra's output folder; None: that of conf/.
    """
    _register_resolvers()
    config = compose(name, list(overrides), return_hydra_config=True)
    with open_dict(config):
        if folder is not None:
            config.hydra.runtime.output_dir = str(folder)
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        del config["hydra"]
    try:
        yield config
    finally:
        HydraConfig.instance().cfg = None
