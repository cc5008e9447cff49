"""Writes small files atomically: a reader finds the former content or the new one, also after a kill."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from feedrate.errors import UserError


def atomic_write(path: Path, text: str, *, shared: bool = False) -> None:
    """Writes a file or replaces it.

    Args:
        shared: several processes may write it at once. Otherwise the temporary file has a fixed name, `.NAME`, so that
            one left by a kill is replaced by the next write.

    Raises:
        OSError: it cannot be written; the former file is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}" if shared else f".{path.name}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def replace_shared_file(path: Path, text: str) -> None:
    """Writes a file that several processes may write at once, and the folders above it.

    Raises:
        OSError: it cannot be written; the former file is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():  # a device, which is not replaced
        path.write_text(text, encoding="utf-8")
    else:
        atomic_write(path, text, shared=True)


def check_place(path: Path) -> None:
    """Raises OSError if the file could not be written now; writes nothing."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    with tempfile.TemporaryFile(dir=next(folder for folder in path.parents if folder.exists())):
        pass


@contextmanager
def writing(what: str, remedy: str) -> Iterator[None]:
    """Raises UserError in place of OSError.

    Args:
        what: is written, a setting or a path.
        remedy: what to do instead.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{what}: cannot be written ({error.strerror or error}); {remedy}") from error
