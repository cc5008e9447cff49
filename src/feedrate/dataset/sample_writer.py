"""Writes samples to `root/ID.pt` in several processes, each file whole or not at all, until done or interrupted.

Which samples, and what else belongs into a dataset folder, is decided elsewhere.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from feedrate.dataset.big_file import BigFile
from feedrate.dataset.split import Indices
from feedrate.errors import UserError

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
        yield from _write(source, indices, root)
    else:
        yield from _write_in_parallel(source, indices, root, num_workers)


def _write(source: BigFile, indices: Indices, root: Path) -> Iterator[int]:
    X, ID_of = source.open_X(root, TEMPORARY), numbered(len(source))
    reported = time.monotonic()
    for count, index in enumerate(indices.tolist(), start=1):
        write_file(root / f"{ID_of(index)}.pt", serialized(X[index]))
        if (now := time.monotonic()) - reported > _REPORT_S:
            yield count
            reported = now
    yield len(indices)


# ---------------------------------------------------------------------------------------------------------
# processes
# ---------------------------------------------------------------------------------------------------------


def _write_in_parallel(source: BigFile, indices: Indices, root: Path, num_workers: int) -> Iterator[int]:
    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    running: dict[Connection, Any] = {}
    written: dict[Connection, int] = {}
    try:
        with _interrupts_held():  # a terminal sends Ctrl-C to the workers too: they inherit that it is held, for good
            for part in np.array_split(indices, num_workers):
                receive, send = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(source, part, root, send, os.getpid()), daemon=True)
                process.start()
                send.close()  # or the end of a worker could not be told from its silence
                running[receive] = process
        while running:
            for receive in wait(list(running), timeout=_REPORT_S):
                assert isinstance(receive, Connection)
                try:
                    message = receive.recv()
                except EOFError:
                    _check_ended(running.pop(receive))
                    continue
                if isinstance(message, BaseException):
                    raise message
                written[receive] = message
            yield sum(written.values())
    finally:
        with deaf():
            for process in running.values():
                process.kill()
            for process in running.values():
                process.join()


def _work(source: BigFile, indices: Indices, root: Path, send: Connection, parent: int) -> None:
    torch.set_num_threads(1)
    try:
        for count in _write(source, indices, root):
            if os.getppid() != parent:  # killed: nobody is left to end this process
                os._exit(1)
            send.send(count)
    except BrokenPipeError:
        os._exit(1)
    except (UserError, OSError) as error:
        send.send(error)


def _check_ended(process: Any) -> None:
    process.join()
    if process.exitcode < 0:
        name = signal.Signals(-process.exitcode).name
        usual = {"SIGKILL": ", as happens when memory runs out", "SIGBUS": ", as happens when the source gets shorter"}
        raise UserError(
            f"num_workers: a worker was ended by {name}{usual.get(name, '')}\n"
            "The same command goes on from what is written; fewer workers need less memory"
        )
    if process.exitcode > 0:
        raise RuntimeError("a worker failed; its traceback is above")


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C arrives after the block; processes started in it never see it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def deaf() -> Iterator[None]:
    """A second Ctrl-C does not disturb what the first one has begun."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
