"""Standard output and error that survive the end of their reader, such as `head` or a closed terminal."""

from __future__ import annotations

import errno
import io
import sys
from typing import Any, TextIO


def outlive_readers() -> None:
    """Replaces sys.stdout and sys.stderr; what is written after the reader's end is lost."""
    sys.stdout, sys.stderr = _outliving(sys.stdout), _outliving(sys.stderr)


class _Outliving(io.FileIO):
    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):  # of a pipe, and of a terminal
                raise
            return memoryview(content).nbytes


def _outliving(stream: TextIO) -> TextIO:
    try:
        raw = io.BufferedWriter(_Outliving(stream.fileno(), "w", closefd=False))
    except (OSError, AttributeError, ValueError):  # closed when Python started, or not a file
        return stream
    stream.flush()
    live = stream is sys.stderr or stream.isatty()
    return io.TextIOWrapper(raw, encoding=stream.encoding, errors=stream.errors, line_buffering=live)
