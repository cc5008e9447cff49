"""Checkpoints that survive a kill: written beside, flushed, renamed; loaded without running code."""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor
from torch import device as Device

from feedrate.errors import UserError
from feedrate.loader import lost_worker
from feedrate.system.folder import sync_folder

log = logging.getLogger("feedrate")
_SUFFIXES = (".pt", ".json")


def save(folder: Path, name: str, state: dict[str, Any], about: dict[str, Any], keep: int = 0) -> Path:
    """Writes `name`.pt, and `name`.json for people; each gets its final name only when its bytes are on the disk.

    Args:
        state: tensors and plain values only, so that torch.load(weights_only=True) reads it.
        about: JSON-able.
        keep: how many earlier ones stay, as `name`-1.pt, `name`-2.pt, ...

    Raises:
        UserError: it cannot be written; the earlier one stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f".{name}.*"):  # of a process that was killed while it wrote
        left.unlink(missing_ok=True)
    text = json.dumps(about, indent=2).encode()
    written = [
        _write(folder / f"{name}.pt", lambda file: torch.save(state, file)),
        _write(folder / f"{name}.json", lambda file: file.write(text)),
    ]
    names = [name, *(f"{name}-{number}" for number in range(1, keep + 1))]
    for newer, older in reversed(list(itertools.pairwise(names))):
        for suffix in _SUFFIXES:
            if (folder / f"{newer}{suffix}").exists():
                (folder / f"{newer}{suffix}").replace(folder / f"{older}{suffix}")
    for temporary, suffix in zip(written, _SUFFIXES, strict=True):
        temporary.replace(folder / f"{name}{suffix}")
    sync_folder(folder)
    return folder / f"{name}.pt"


def copy(folder: Path, name: str, other: str) -> None:
    """Gives a checkpoint a second name, which it keeps when the first one is written again."""
    for suffix in _SUFFIXES:
        temporary = folder / f".{other}{suffix}.{os.getpid()}"
        temporary.unlink(missing_ok=True)
        try:
            os.link(folder / f"{name}{suffix}", temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(folder / f"{name}{suffix}", temporary)
        temporary.replace(folder / f"{other}{suffix}")
    sync_folder(folder)


def load(path: Path) -> dict[str, Any]:
    """The state in a checkpoint, on the CPU.

    Raises:
        ValueError: it is damaged; torch.load alone does not verify the checksums.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{path}: is damaged (checksum of {damaged})")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, RuntimeError, EOFError) as error:
        raise ValueError(f"{path}: is damaged ({str(error).splitlines()[0]})") from error
    assert isinstance(state, dict)
    return state


def newest(folder: Path, name: str = "last") -> dict[str, Any] | None:
    """The newest undamaged checkpoint's state, None if there is none; a damaged one is a note."""
    earlier = sorted(folder.glob(f"{name}-*.pt"), key=lambda path: int(path.stem.rpartition("-")[2]))
    for path in [folder / f"{name}.pt", *earlier]:
        if path.exists():
            try:
                return load(path)
            except ValueError as error:
                log.warning("note: %s; the one before it is taken", error)
    return None


@dataclass(frozen=True)
class Generators:
    """States of the global random generators; `device` is None on the CPU."""

    torch: Tensor
    python: tuple[Any, ...]
    numpy: Any
    device: Tensor | None

    @classmethod
    def now(cls, device: Device) -> Generators:
        """Takes 40 us, since a run without workers needs it before each batch; `plain` takes ten times as much."""
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()
        if device.type == "cpu":
            return cls(*states, None)
        with torch.accelerator.device_index(device.index):
            return cls(*states, torch.get_device_module(device).get_rng_state())

    def plain(self) -> dict[str, Any]:
        """As plain values and tensors, for a checkpoint."""
        version, numbers, gauss = self.python
        kind, keys, position, has_gauss, cached = self.numpy
        state = {
            "torch": self.torch,
            "python": [version, torch.tensor(numbers), gauss],
            "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        }
        return state if self.device is None else {**state, "device": self.device}


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Sets the generators to a state of `Generators.plain`; the device's only if it is of the same kind."""
    torch.set_rng_state(state["torch"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    if "device" in state and device.type != "cpu":
        module = torch.get_device_module(device)
        with torch.accelerator.device_index(device.index):
            if module.get_rng_state().shape == state["device"].shape:
                module.set_rng_state(state["device"])


def _write(path: Path, write: Callable[[IO[bytes]], Any]) -> Path:
    """Writes and flushes a temporary file for `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch's writer turns the former into the latter
        temporary.unlink(missing_ok=True)  # leaves room for summary.json
        if (lost := lost_worker(error)) is not None:  # torch's DataLoader raises that anywhere
            raise lost from error
        reason = error.strerror if isinstance(error, OSError) else "the disk is full, or a limit of size is reached"
        raise UserError(
            f"{path}: cannot be written ({reason}); make room, or name another folder with hydra.run.dir="
        ) from error
    return temporary
