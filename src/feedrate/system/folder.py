"""Locks, and folders that a command writes into: one command at a time, interruptible, and durable."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from feedrate.errors import UserError

_LOCK_S = 3.0  # workers of a killed command hold its lock until they notice, which takes a sample or a shard


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a command that resumes.

    Args:
        written: what exists by now.
    """

    def __init__(self, written: str) -> None:
        super().__init__(f"interrupted: {written}; the same command goes on from there")


@contextmanager
def file_lock(path: Path, timeout_s: float = -1) -> Iterator[None]:
    """Holds the lock file `path`, which does not exist before and after.

    Raises:
        TimeoutError: another process holds it for longer than `timeout_s` (-1: waits without limit).
    """
    from filelock import FileLock  # imports asyncio: 0.1 s

    with FileLock(path, timeout=timeout_s):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Keeps other commands from writing into the folder.

    Raises:
        UserError: one is writing.
    """
    try:
        with file_lock(root / ".lock", _LOCK_S):
            yield
    except TimeoutError:
        raise UserError(f"root={root}: another command is writing there; wait for it, or choose another root") from None


def sync_folder(root: Path) -> None:
    """Waits until the names in a folder are on disk, which fsync of a renamed file does not do."""
    folder = os.open(root, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
