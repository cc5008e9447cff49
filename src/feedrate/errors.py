"""Errors for the user: one to three lines with value, rule and remedy. Bugs of this program are assertions."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import FrameType

_LIBRARIES = str(Path(os.__file__).parent), str(Path(__file__).parent)  # Python's, and this program


class UserError(ValueError):
    """A mistake that the user can fix; shown without a traceback."""


class LostWorker(UserError):
    """A worker process of a loader was killed or exited; the training so far is not affected."""


class SampleError(UserError):
    """One sample cannot be used; `cause` is the original exception with its traceback, or an empty text.

    `worker` (None: the main process) is not part of the message, which is the same for any number of workers.
    """

    def __init__(
        self,
        message: str,
        *,
        ID: str | None = None,
        path: str | None = None,
        worker: int | None = None,
        cause: str = "",
    ) -> None:
        super().__init__(message)
        self.ID, self.path, self.worker, self.cause = ID, path, worker, cause


def offence(fault: str, offenders: Sequence[object], remedy: str) -> str:
    """A message with up to five offenders and their number."""
    texts = [text if len(text) <= 80 else f"{text[:76]}...{text[-1]}" for text in map(repr, offenders[:5])]
    shown = ", ".join(texts) + (", ..." if len(offenders) > 5 else "")
    return f"{fault}: {shown} ({len(offenders):,} in all); {remedy}"


def user_line(frames: Iterable[tuple[FrameType, int]]) -> str:
    """The first frame (innermost first) outside of libraries, as 'own.py, line 5, in f'; '' if there is none."""
    for frame, line in frames:
        code = frame.f_code
        if not code.co_filename.startswith((*_LIBRARIES, "<")) and f"-packages{os.sep}" not in code.co_filename:
            return f"{Path(code.co_filename).name}, line {line}, in {code.co_name}"
    return ""


def raised_at(error: BaseException) -> str:
    """Where in the user's code an error was raised, as ' (own.py, line 5, in f)'; '' if only in libraries."""
    place = user_line(reversed(list(traceback.walk_tb(error.__traceback__))))
    return f" ({place})" if place else ""
