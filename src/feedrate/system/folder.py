"""A folder that commands write into: one of them at a time, each can be interrupted, and on disk is what they say is.

What they write is their own affair.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from feedrate.errors import UserError

_LOCK_S = 3.0  # the workers of a killed command hold its lock until they notice: the time of one sample or shard


class Interrupted(KeyboardInterrupt):
    """Ctrl-C.

    Args:
        written: what is there by now.
    """

    def __init__(self, written: str) -> None:
        super().__init__(f"interrupted: {written}; the same command goes on from there")


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """No other command writes into the folder within it.

    Raises:
        UserError: one does.
    """
    try:
        with FileLock(root / ".lock", timeout=_LOCK_S):
            yield
    except Timeout:
        raise UserError(f"root={root}: another command is writing there; wait for it, or choose another root") from None


def sync_folder(root: Path) -> None:
    """Waits until the names in a folder are on disk: a renaming must reach it too."""
    folder = os.open(root, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
