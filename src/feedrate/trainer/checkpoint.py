"""Checkpoints that survive a kill: written beside, flushed, renamed; loaded without running code."""

from __future__ import annotations

import itertools
import logging
import os
import random
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from feedrate.errors import UserError
from feedrate.loader import lost_worker
from feedrate.system.files import sync_folder

log = logging.getLogger("feedrate")


def save(folder: Path, name: str, state: dict[str, Any], keep: int = 0) -> Path:
    """Writes `name`.pt, which gets its final name only when its bytes are on the disk; raises UserError if it cannot.

    `state` holds tensors and plain values only, so that torch.load(weights_only=True) reads it. `keep` earlier ones
    are kept, as `name`-1.pt, `name`-2.pt, ...
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary, final = folder / f".{name}.pt", folder / f"{name}.pt"
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch's writer turns the former into the latter
        temporary.unlink(missing_ok=True)  # leaves room for summary.json
        if (lost := lost_worker(error)) is not None:  # torch's DataLoader raises that anywhere
            raise lost from error
        reason = error.strerror if isinstance(error, OSError) else "the disk is full, or a limit of size is reached"
        raise UserError(f"{final}: cannot be written ({reason}); make room, or set hydra.run.dir=") from error
    paths = [temporary, final, *(folder / f"{name}-{number}.pt" for number in range(1, keep + 1))]
    for newer, older in reversed(list(itertools.pairwise(paths))):
        if newer.exists():
            newer.replace(older)
    sync_folder(folder)
    return final


def copy(folder: Path, name: str, other: str) -> None:
    """Gives a checkpoint a second name, which it keeps when the first one is written again."""
    temporary = folder / f".{other}.pt"
    temporary.unlink(missing_ok=True)
    try:
        os.link(folder / f"{name}.pt", temporary)
    except OSError:  # a file system without hard links
        shutil.copyfile(folder / f"{name}.pt", temporary)
    temporary.replace(folder / f"{other}.pt")
    sync_folder(folder)


def load(path: Path) -> dict[str, Any]:
    """The state in a checkpoint, on the CPU; raises UserError if it is damaged (torch.load verifies no checksums)."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise UserError(f"{path}: is damaged (checksum of {damaged})")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, RuntimeError, EOFError) as error:
        raise UserError(f"{path}: is damaged ({str(error).splitlines()[0]})") from error
    assert isinstance(state, dict)
    return state


def newest(folder: Path, name: str = "last") -> dict[str, Any] | None:
    """The newest undamaged checkpoint's state, None if there is none; logs a note for each damaged one."""
    earlier = sorted(folder.glob(f"{name}-*.pt"), key=lambda path: int(path.stem.rpartition("-")[2]))
    for path in [folder / f"{name}.pt", *earlier]:
        if path.exists():
            try:
                return load(path)
            except UserError as error:
                log.warning("note: %s; the one before it is used", error)
    return None


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of the global random generators, as plain values and tensors; takes some 60 us."""
    kind, keys, *rest = np.random.get_state()
    state = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *rest),  # type: ignore[attr-defined]
    }
    if device.type == "cpu":
        return state
    with torch.accelerator.device_index(device.index):
        return {**state, "device": torch.get_device_module(device).get_rng_state()}


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Sets the generators to a state of `random_state`; the device's only if it is of the same kind."""
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    if "device" in state and device.type != "cpu":
        module = torch.get_device_module(device)
        with torch.accelerator.device_index(device.index):
            if module.get_rng_state().shape == state["device"].shape:
                module.set_rng_state(state["device"])
