"""Files and folders: written atomically, locked against other processes, and durable."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from feedrate.errors import UserError

_LOCK_S = 3.0  # workers of a killed command hold its lock until they notice, which takes a sample or a shard


def atomic_write(path: Path, text: str) -> None:
    """Writes a file or replaces it: a reader finds the former content or the new one, also after a kill.

    The temporary file has a fixed name, `.NAME`, so that one left by a kill is replaced by the next write.
    """
    if path.exists() and not path.is_file():  # a device, which is not replaced
        path.write_text(text, encoding="utf-8")
        return
    temporary = path.with_name(f".{path.name}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def check_place(path: Path) -> None:
    """Raises OSError if the file could not be written now; writes nothing."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    with tempfile.TemporaryFile(dir=next(folder for folder in path.parents if folder.exists())):
        pass


@contextmanager
def writing(what: str, remedy: str) -> Iterator[None]:
    """Raises UserError in place of OSError; `what` is written, a setting or a path."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{what}: cannot be written ({error.strerror or error}); {remedy}") from error


def sync_folder(root: Path) -> None:
    """Waits until the names in a folder are on disk, which fsync of a renamed file does not do."""
    folder = os.open(root, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def file_lock(path: Path, timeout_s: float = -1) -> Iterator[None]:
    """Holds the lock file `path`, which does not exist before and after; TimeoutError after `timeout_s` (-1: never)."""
    from filelock import FileLock  # imports asyncio: 0.1 s

    with FileLock(path, timeout=timeout_s):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Keeps other commands from writing into the folder; UserError if one is writing."""
    try:
        with file_lock(root / ".lock", _LOCK_S):
            yield
    except TimeoutError:
        raise UserError(f"root={root}: another command is writing there; wait for it, or choose another root") from None
