"""Small files that are whole at every instant, however many processes write them and whenever one is killed.

What stands in them is the caller's affair.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from feedrate.errors import UserError


def atomic_write(path: Path, text: str, temporary: Path | None = None) -> None:
    """Writes a file that one process writes at a time; an earlier one is replaced.

    Args:
        temporary: what it is called until it is whole; `.NAME` if not given.

    Raises:
        OSError: it cannot be written; the earlier one is as it was.
    """
    temporary = temporary or path.with_name(f".{path.name}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def replace_shared_file(path: Path, text: str) -> None:
    """The same for a file that several may write at once, with the folders above it.

    Raises:
        OSError: it cannot be written; the earlier one is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():  # a device, which stays what it is
        path.write_text(text, encoding="utf-8")
        return
    atomic_write(path, text, path.with_name(f".{path.name}.{os.getpid()}"))


def check_place(path: Path) -> None:
    """Looks whether the file could be written now, and leaves nothing.

    Raises:
        OSError: it could not.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    with tempfile.TemporaryFile(dir=next(folder for folder in path.parents if folder.exists())):
        pass


@contextmanager
def told(what: str, remedy: str) -> Iterator[None]:
    """Within it a file that cannot be written is the user's to mend.

    Args:
        what: is written, a setting or a path.
        remedy: what to do instead.

    Raises:
        UserError: instead of OSError.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{what}: cannot be written ({error.strerror or error}); {remedy}") from error
