"""Divides work among processes that report as they go; none of them outlives its parent. Not for loading batches."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from feedrate.errors import UserError
from feedrate.system.signals import STOPPING, ignore, signals_blocked

T = TypeVar("T")


def in_processes(work: Callable[[T], Iterator[Any]], parts: Sequence[T]) -> Generator[tuple[int, Any], None, None]:
    """Runs `work(part)` for each part in its own process; yields the part's number and what the work yields.

    A single part runs in this process. Closed or interrupted, it kills the processes.
    """
    if len(parts) == 1:
        yield from ((0, message) for message in work(parts[0]))
        return
    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    running: dict[Connection, tuple[int, Any]] = {}
    try:
        with signals_blocked(*STOPPING):  # a terminal sends Ctrl-C to the workers too
            for number, part in enumerate(parts):
                receive, send = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(work, part, send, os.getpid()), daemon=True)
                process.start()
                send.close()  # otherwise the worker's end would not close the pipe
                running[receive] = number, process
        while running:
            for receive in wait(list(running)):
                assert isinstance(receive, Connection)
                try:
                    message = receive.recv()
                except EOFError:
                    _check_ended(running.pop(receive)[1])
                    continue
                if isinstance(message, BaseException):
                    raise message
                yield running[receive][0], message
    finally:
        with signals_blocked(signal.SIGINT):
            for _, process in running.values():
                process.kill()
            for _, process in running.values():
                process.join()


def _work(work: Callable[[T], Iterator[Any]], part: T, send: Connection, parent: int) -> None:
    import torch

    ignore(STOPPING)
    torch.set_num_threads(1)
    try:
        for message in work(part):
            if os.getppid() != parent:  # the parent was killed
                os._exit(1)
            send.send(message)
    except BrokenPipeError:
        os._exit(1)
    except (UserError, OSError) as error:
        error.__cause__ = error.__context__ = None  # may not survive pickling
        send.send(error)


def _check_ended(process: Any) -> None:
    process.join()
    if process.exitcode < 0:
        name = signal.Signals(-process.exitcode).name
        raise UserError(
            f"num_workers: a worker was ended by {name}, as happens when memory runs out or the source gets shorter\n"
            "The same command continues from what is written; fewer workers need less memory"
        )
    if process.exitcode > 0:
        raise RuntimeError("a worker failed; its traceback is above")
