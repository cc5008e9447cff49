"""A run's own folder, owned by one process at a time through a lock file.

What is written into the folder is decided by its owner.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import psutil

from feedrate.errors import UserError


class RunFolder:
    """Owns `path` until `release`.

    The lock file holds the owner's process number and start time, since numbers are used again; a dead owner's lock is
    taken over.

    Raises:
        UserError: a living process owns the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = path / "lock"
        path.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"pid": os.getpid(), "started": psutil.Process().create_time()})
        for _ in range(2):
            try:
                descriptor = os.open(self._lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                owner = living_owner(path)
                if owner is not None:
                    raise UserError(
                        f"{path}: process {owner} is using this run folder; wait for it, or leave hydra.run.dir alone"
                    ) from None
                self._lock.unlink(missing_ok=True)
                continue
            with os.fdopen(descriptor, "w") as file:
                file.write(content)
            return
        raise UserError(f"{path}: another process took this run folder at the same instant; start again")

    def release(self) -> None:
        """Gives the folder up."""
        self._lock.unlink(missing_ok=True)


def living_owner(path: Path) -> int | None:
    """Number of the process that owns a run folder now, None if there is none or it has ended."""
    with contextlib.suppress(OSError, ValueError, KeyError, psutil.Error):
        owner = json.loads((path / "lock").read_text())
        process = psutil.Process(owner["pid"])
        # one that has ended may stay as a zombie for ever where nobody asks for its exit code, as in some containers
        if process.create_time() == owner["started"] and process.status() != psutil.STATUS_ZOMBIE:
            return int(owner["pid"])
    return None
