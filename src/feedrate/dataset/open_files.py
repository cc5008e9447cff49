"""Warns of open files in a dataset: forked workers share their position, so that one seeks while another reads."""

from __future__ import annotations

import functools
import io
import logging
import zipfile
from typing import Any

from feedrate.dataset.subset import unwrapped

log = logging.getLogger("feedrate")


def warn_of_open_files(dataset: Any) -> None:
    """One line for the first open file among the attributes of a dataset whose workers are about to be forked."""
    dataset = unwrapped(dataset)[0]
    for name, value in getattr(dataset, "__dict__", {}).items():
        if _has_position(value):
            _warn(f"{type(dataset).__name__}.{name}")
            return


@functools.cache  # training and validation often have one dataset
def _warn(place: str) -> None:
    log.warning(
        "note: %s is an open file, and forked workers share its position, so that samples may get each other's "
        "content; open it in __getitem__, and again where os.getpid() has changed, or in worker_init_fn", place
    )  # fmt: skip


def _has_position(value: Any) -> bool:
    """Whether a value is an open file that is read with a position; also for h5py's objects."""
    file = value.fp if isinstance(value, zipfile.ZipFile) else value
    if not isinstance(file, io.IOBase):
        return type(file).__module__.startswith("h5py.") and bool(file)  # h5py's closed objects are False
    try:
        return not file.closed and file.readable() and file.seekable() and file.fileno() > 2
    except (OSError, ValueError):  # not a file of the operating system, such as BytesIO
        return False
