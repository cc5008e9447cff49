"""The folder that prepare.py or pack.py writes: lock, allowed content, disk space, and writing files atomically."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from feedrate.errors import UserError
from feedrate.system.files import locked
from feedrate.system.signals import signals_blocked

PARTIAL = ".partial-"  # prefix of files that are not whole yet; those of a killed process are removed


@contextmanager
def writing(root: Path) -> Iterator[None]:
    """Creates the folder and locks it; removes partial files before and, except after a kill, at the end.

    Raises:
        UserError: another command holds the lock, or the folder cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(root):
            _remove_partial(root)
            try:
                yield
            finally:
                with signals_blocked(signal.SIGINT):
                    _remove_partial(root)
    except OSError as error:
        raise UserError(
            f"root={root}: cannot be written ({error.strerror or error})\n"
            "Make room, or choose another root; the same command continues from what is written"
        ) from error


def check_root(root: Path, marker: str, source: Path | None = None) -> None:
    """Checks that the folder is new, empty but for hidden files and `source`, or holds the file `marker`."""
    if root.exists() and not root.is_dir():
        raise UserError(f"root={root}: is a file; choose a new folder")
    if not root.exists() or (root / marker).is_file():
        return
    if others := sorted(path.name for path in root.iterdir() if path.name[0] != "." and path != source):
        shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        raise UserError(f"root={root}: holds other files ({shown}; {len(others):,} in all); choose a new folder")


def check_room(root: Path, what: str, needed: int) -> None:
    """Raises OSError unless `needed` bytes of disk space are free."""
    free = shutil.disk_usage(root).free
    if needed > free:
        raise OSError(f"{what} need about {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free")


def write_file(path: Path, content: bytes, flush: bool = False) -> None:
    """Writes a file under a temporary name and renames it, with `flush` after its content is on disk."""
    temporary = path.with_name(f"{PARTIAL}{path.name}")
    with temporary.open("wb") as file:
        file.write(content)
        if flush:
            file.flush()
            os.fsync(file.fileno())
    temporary.replace(path)


def _remove_partial(root: Path) -> None:
    for path in root.iterdir():
        # safetensors writes to `.tmpXXXXXX` first
        if path.name.startswith(PARTIAL) or (path.name.startswith(".tmp") and len(path.name) == 10):
            path.unlink()
