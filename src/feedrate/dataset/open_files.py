"""Warns of open files in a dataset: forked workers share their position, and read what another one has sought.

Memory maps, files in memory and files that are only written have no shared position.
"""

from __future__ import annotations

import functools
import io
import logging
import sys
from collections.abc import Iterator
from itertools import islice
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor

log = logging.getLogger("feedrate")
ELEMENTS = 32  # of a collection that are looked at
DEPTH = 6  # Subset, list, dataset, its dictionary, an archive, its file
_PLAIN = (str, bytes, int, float, Tensor, np.ndarray, ModuleType, type)


def warn_of_open_files(dataset: Any) -> None:
    """One line for the first open file in the attributes of a dataset whose workers are about to be forked."""
    found = next(_open_files(dataset, type(dataset).__name__, DEPTH, set()), None)
    if found is not None:
        _warn(*found)


@functools.cache  # training and validation often have one dataset
def _warn(place: str, what: str) -> None:
    log.warning(
        "note: %s is %s, and forked workers share its position, so that samples may get each other's content; open it "
        "in the worker: in __getitem__, and again where os.getpid() has changed, or in worker_init_fn",
        place,
        what,
    )


def _open_files(value: Any, place: str, depth: int, seen: set[int]) -> Iterator[tuple[str, str]]:
    """The place of each, such as `Subset.dataset.file`, and what it is."""
    if id(value) in seen or depth < 0 or isinstance(value, _PLAIN):
        return
    seen.add(id(value))
    if what := _open_file(value):
        yield place, what
        return
    if isinstance(value, dict):
        parts = ((f"{place}[{key!r}]", one) for key, one in islice(value.items(), ELEMENTS))
    elif isinstance(value, (list, tuple)):
        parts = ((f"{place}[{at}]", one) for at, one in enumerate(value[:ELEMENTS]))
    else:
        held = getattr(value, "__dict__", None)
        parts = ((f"{place}.{name}", one) for name, one in (held if isinstance(held, dict) else {}).items())
    for part, one in parts:
        yield from _open_files(one, part, depth - 1, seen)


def _open_file(value: Any) -> str:
    """What it is, if it is an open file with a position; else ""."""
    if isinstance(value, io.IOBase):
        try:
            shared = not value.closed and value.readable() and value.seekable() and value.fileno() > 2
        except (OSError, ValueError):  # no file of the system, as BytesIO
            return ""
        name = getattr(value, "name", None)
        named = f" ({name})" if isinstance(name, str) else ""
        return f"an open file{named}" if shared and value not in (sys.stdin, sys.stdout, sys.stderr) else ""
    for kind in type(value).__mro__:
        if kind.__module__.partition(".")[0] == "h5py" and kind.__name__ in ("File", "Group", "Dataset"):
            return f"an open h5py.{kind.__name__}" if value else ""  # False for what is closed
    return ""
