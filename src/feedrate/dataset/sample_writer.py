"""Writes samples to `root/ID.pt` in several processes, each file whole or not at all, until done or interrupted.

Which samples, and what else belongs into a dataset folder, is decided elsewhere.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from feedrate.dataset.big_file import BigFile
from feedrate.dataset.split import Indices
from feedrate.system.processes import in_processes

TEMPORARY = ".prepare-"  # what begins with it is left from an interruption
_REPORT_S = 0.1


def numbered(count: int) -> Callable[[int], str]:
    """The ID of a sample: its position in the big file, with as many digits as the last one has."""
    return f"{{:0{len(str(count - 1))}d}}".format


def serialized(X: Tensor) -> bytes:
    """The file of one sample: X alone, without the storage that it is a part of.

    Written through memory, so that the file does not hold its own name and all files of one shape are equally long.
    """
    buffer = io.BytesIO()
    torch.save(X.clone(memory_format=torch.contiguous_format), buffer)
    return buffer.getvalue()


def write_file(path: Path, content: bytes, flush: bool = False) -> None:
    """Writes a file under another name and renames it: under its own it is whole whenever it is seen.

    Args:
        flush: also wait until the content is on disk.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    with temporary.open("wb") as file:
        file.write(content)
        if flush:
            file.flush()
            os.fsync(file.fileno())
    temporary.replace(path)


def write_samples(source: BigFile, indices: Indices, root: Path, num_workers: int) -> Generator[int, None, None]:
    """Writes the samples at `indices`, and yields how many are written, some times per second.

    Args:
        num_workers: processes that write; 0 writes in this one.

    Raises:
        UserError: the source cannot be read any more, or a worker was killed.
        OSError: a file cannot be written.

    Closed or interrupted before its end, it ends the workers at once; what they leave begins with `TEMPORARY`.
    """
    if num_workers == 0:
        yield from _write(indices, source, root)
        return
    written: dict[int, int] = {}
    with closing(in_processes(partial(_write, source=source, root=root), np.array_split(indices, num_workers))) as news:
        for number, count in news:
            if count is not None:
                written[number] = count
            yield sum(written.values())


def _write(indices: Indices, source: BigFile, root: Path) -> Iterator[int]:
    X, ID_of = source.open_X(root, TEMPORARY), numbered(len(source))
    reported = time.monotonic()
    for count, index in enumerate(indices.tolist(), start=1):
        write_file(root / f"{ID_of(index)}.pt", serialized(X[index]))
        if (now := time.monotonic()) - reported > _REPORT_S:
            yield count
            reported = now
    yield len(indices)
