"""Standard output and error that outlive their readers: what nobody reads any more is lost, and the work goes on.

A pipe into `head`, a terminal that was closed. What is written is everybody's own affair.
"""

from __future__ import annotations

import errno
import io
import sys
from typing import Any, TextIO

_NOBODY_READS = (errno.EPIPE, errno.EIO)  # of a pipe, and of a terminal


def outlive_readers() -> None:
    """Puts such streams in the place of sys.stdout and sys.stderr, for this process and all that it prints."""
    sys.stdout, sys.stderr = _outliving(sys.stdout), _outliving(sys.stderr)


class _Outliving(io.FileIO):
    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            if error.errno not in _NOBODY_READS:
                raise
            return memoryview(content).nbytes


def _outliving(stream: TextIO) -> TextIO:
    try:
        raw = _Outliving(stream.fileno(), "w", closefd=False)
    except (OSError, AttributeError, ValueError):  # closed when Python began, or one that is no file
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream is sys.stderr or stream.isatty(),
    )
