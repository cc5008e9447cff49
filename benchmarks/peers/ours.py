"""Feedrate's formats and engines as contenders."""

from __future__ import annotations

import inspect
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from peers.sets import Set, make, pad

ROOT = Path(__file__).resolve().parents[2]


class Absent(Exception):
    """This contender is not available; the text says why."""


class Opened:
    """A Loader with the methods that process.py calls."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __iter__(self) -> Any:
        return iter(self.loader)

    def order_digest(self) -> str:
        return str(self.loader.order_digest())

    def close(self) -> None:
        self.loader.close()


def open_loader(home: Path, of: Set, batch_size: int, workers: int, form: str, engine: str) -> Opened:
    from feedrate.loader import Loader

    options: dict[str, Any] = {"collate_fn": pad} if of.ragged else {}
    if "engine" in inspect.signature(Loader.__init__).parameters:
        options["engine"] = engine
    elif engine == "thread":
        raise Absent("this version has no loader.engine=thread")
    data = _dataset(home, of, form)
    return Opened(
        Loader(
            data, batch_size=batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0, seed=0,
            **options,
        )
    )  # fmt: skip


def _dataset(home: Path, of: Set, form: str) -> Any:
    from feedrate import dataset

    if form == "tensor_files":
        return dataset.TensorFiles(of.list_IDs, of.labels, home / "pt")
    if form == "array_files":
        return dataset.ArrayFiles(of.list_IDs, of.labels, make_npy(home, of))
    if form == "in_memory":
        return dataset.InMemory(of.list_IDs, of.labels, home / "pt")
    if not hasattr(dataset, "Packed"):
        raise Absent("this version has no dataset=packed")
    return _packed(home, of)


def make_npy(home: Path, of: Set) -> Path:
    """The samples as `npy/ID.npy`."""

    def write(folder: Path) -> None:
        for ID, X, _ in of.samples():
            np.save(folder / f"{ID}.npy", X.numpy())
        for name in ("partition.json", "labels.json"):
            shutil.copy(home / "pt" / name, folder / name)

    return make(home / "npy", write)


def _packed(home: Path, of: Set) -> Any:
    """The samples as shards, written by src/pack.py."""
    from feedrate import dataset

    def write(folder: Path) -> None:
        command = [sys.executable, str(ROOT / "src/pack.py"), "dataset=tensor_files", f"dataset.root={home / 'pt'}"]
        done = subprocess.run([*command, f"root={folder}"], capture_output=True, text=True)
        if done.returncode:
            raise Absent(f"src/pack.py: {(done.stderr or done.stdout).strip()}")

    return dataset.Packed(make(home / "packed", write))  # type: ignore[attr-defined]
