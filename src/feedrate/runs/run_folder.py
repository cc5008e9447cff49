"""A run folder: its owner (one process at a time), its summary.json and its checkpoints."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from feedrate.errors import UserError
from feedrate.system.files import atomic_write, file_lock
from feedrate.system.secrets import masked

SUMMARY = "summary.json"


class RunFolder:
    """Owns the folder `path` until `release`; a dead owner's folder is taken over, a living one's is a UserError.

    The file `lock` holds the owner's process id and start time, since process ids are reused. `named_by` is the setting
    that the path comes from.
    """

    def __init__(self, path: Path, named_by: str = "hydra.run.dir") -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        path.mkdir(parents=True, exist_ok=True)
        with file_lock(path / ".lock"):
            if (other := living_owner(path)) is not None:
                raise UserError(
                    f"{named_by}={path}: process {other} uses this run folder; wait for it, or name another"
                )
            owner = {"pid": os.getpid(), "started": psutil.Process().create_time()}
            (path / "lock").write_text(json.dumps(owner), encoding="utf-8")

    def release(self) -> None:
        """Removes the lock."""
        (self.path / "lock").unlink(missing_ok=True)

    def tidy(self) -> None:
        """Removes files that a killed process left half written."""
        for left in (self.path / f".{SUMMARY}", *self.checkpoints.glob(".*")):
            left.unlink(missing_ok=True)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replaces summary.json atomically: secrets masked, numbers that are not finite as null."""
        text = json.dumps(_finite(masked(summary)), indent=2, default=str, allow_nan=False)
        atomic_write(self.path / SUMMARY, text)


def living_owner(path: Path) -> int | None:
    """Process id of a run folder's owner; None where there is none or it has ended."""
    with contextlib.suppress(OSError, ValueError, KeyError, psutil.Error):
        owner = json.loads((path / "lock").read_text())
        process = psutil.Process(owner["pid"])
        # a process that has ended stays a zombie until its exit code is read, in some containers forever
        if process.create_time() == owner["started"] and process.status() != psutil.STATUS_ZOMBIE:
            return int(owner["pid"])
    return None


def read_summary(path: Path) -> dict[str, Any]:
    """summary.json of a run folder; empty where it is missing or unreadable."""
    try:
        found = json.loads((path / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _finite(value: Any) -> Any:
    """`value` with null for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
