"""Checkpoints that survive a kill: written beside, flushed, renamed; readable without running code.

What is in one is decided by the loop; where a run goes on from one is not decided here.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch


def save(folder: Path, name: str, state: dict[str, Any], about: dict[str, Any]) -> Path:
    """Writes `name`.pt, and what a person wants to know of it as `name`.json beside it.

    The checkpoint at its final name is always whole: the new one replaces it only when its bytes are on the disk.

    Args:
        state: tensors and plain values only, so that torch.load(weights_only=True) reads it.
        about: JSON-able.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.pt"
    _replace(path, lambda file: torch.save(state, file))
    _replace(folder / f"{name}.json", lambda file: file.write(json.dumps(about, indent=2).encode()))
    return path


def load(path: Path) -> dict[str, Any]:
    """The state in a checkpoint, on the CPU."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    assert isinstance(state, dict)
    return state


def random_state() -> dict[str, Any]:
    """States of the global random generators, as plain values and tensors."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "torch": torch.get_rng_state(),
        "python": [version, torch.tensor(numbers), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
    }
    if torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator()
        assert device is not None
        state["device"] = torch.get_device_module(device).get_rng_state()
    return state


def _replace(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)  # the renaming itself must reach the disk too
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
