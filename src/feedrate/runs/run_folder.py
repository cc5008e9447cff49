"""A run's own folder, owned by one process at a time through a lock file.

What is written into the folder is decided by its owner.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from pathlib import Path

import psutil

from feedrate.errors import UserError


class RunFolder:
    """Owns `path` until `release`.

    The lock file holds the owner's process number and start time, since numbers are used again; a dead owner's lock is
    taken over.

    Args:
        named_by: the setting that the path comes from, for the error.

    Raises:
        UserError: a living process owns the folder.
    """

    def __init__(self, path: Path, named_by: str = "hydra.run.dir") -> None:
        self.path = path
        self._lock = path / "lock"
        path.mkdir(parents=True, exist_ok=True)
        owner = {"pid": os.getpid(), "started": psutil.Process().create_time()}
        for _ in range(3):
            if self._take(json.dumps(owner)):
                return
            if (other := living_owner(path)) is not None:
                raise UserError(
                    f"{named_by}={path}: process {other} is using this run folder; wait for it, or name another"
                )
            self._remove_dead()
        raise UserError(f"{path}: another process took this run folder at the same instant; start again")

    def _take(self, content: str) -> bool:
        """Makes the lock, whole from its first instant: an empty one would be taken for a dead owner's."""
        written = self._lock.with_name(f".lock.{os.getpid()}")
        written.write_text(content, encoding="utf-8")
        try:
            os.link(written, self._lock)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            try:
                with self._lock.open("x", encoding="utf-8") as file:
                    file.write(content)
            except FileExistsError:
                return False
        finally:
            written.unlink(missing_ok=True)
        return True

    def _remove_dead(self) -> None:
        """Removes a dead owner's lock, but not one that another process has made in its place by now."""
        with contextlib.suppress(FileNotFoundError), self._lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_ino == self._lock.stat().st_ino and living_owner(self.path) is None:
                self._lock.unlink()

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
