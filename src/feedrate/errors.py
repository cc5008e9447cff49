"""Errors that a user reads: one to three lines with the value, the rule and the remedy.

Anything else that escapes is a defect of this program; `assert` is for those.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import FrameType

_LIBRARIES = str(Path(os.__file__).parent), str(Path(__file__).parent)  # Python's, and this program


class UserError(ValueError):
    """A mistake that the user can mend; the message alone is shown, without a traceback."""


class LostWorker(UserError):
    """A worker process of a loader was killed, or ended by itself; what was trained before is not affected."""


class SampleError(UserError):
    """One sample cannot be used.

    Attributes:
        ID: the sample's ID, or None where it is not known.
        path: the sample's file, or None for samples that are computed.
        worker: number of the worker that met it, None for the main process. Not part of the message, so that
            the text is the same for any number of workers.
        cause: text of the original exception with its traceback, empty where there is none.
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
        self.ID = ID
        self.path = path
        self.worker = worker
        self.cause = cause

    def __reduce__(self) -> tuple[object, ...]:
        return _restore, (str(self), self.ID, self.path, self.worker, self.cause)


def offence(fault: str, offenders: Sequence[object], remedy: str) -> str:
    """A message that names up to five offenders and their number."""
    shown = ", ".join(_cut(repr(offender)) for offender in offenders[:5]) + (", ..." if len(offenders) > 5 else "")
    return f"{fault}: {shown} ({len(offenders):,} in all); {remedy}"


def user_line(frames: Iterable[tuple[FrameType, int]]) -> str:
    """The first of the frames (innermost first) that lies in no library, as 'own.py, line 5, in f'; '' if all do."""
    for frame, line in frames:
        code = frame.f_code
        if not code.co_filename.startswith((*_LIBRARIES, "<")) and f"-packages{os.sep}" not in code.co_filename:
            return f"{Path(code.co_filename).name}, line {line}, in {code.co_name}"
    return ""


def raised_at(error: BaseException) -> str:
    """Where in the user's code an error came up, as ' (own.py, line 5, in f)'; '' where it was in a library alone."""
    place = user_line(reversed(list(traceback.walk_tb(error.__traceback__))))
    return f" ({place})" if place else ""


def _cut(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:76]}...{text[-1]}"


def _restore(message: str, ID: str | None, path: str | None, worker: int | None, cause: str) -> SampleError:
    return SampleError(message, ID=ID, path=path, worker=worker, cause=cause)
