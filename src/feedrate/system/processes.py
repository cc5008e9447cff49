"""Work that is divided among processes: each reports as it goes, and none outlives an end, an interruption or a kill.

What the work is, is the caller's affair; the loader's workers are torch's.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import torch

from feedrate.errors import UserError
from feedrate.system.signals import signals_blocked, signals_ignored

T = TypeVar("T")
_REPORT_S = 0.1


def in_processes(work: Callable[[T], Iterator[Any]], parts: Sequence[T]) -> Generator[tuple[int, Any], None, None]:
    """Runs `work(part)` for each part in a process of its own, and yields what they yield with the part's number.

    Where nothing came for a while it yields (-1, None).

    Raises:
        UserError, OSError: as raised by the work, or a process was killed.

    Closed or interrupted before its end, it ends the processes at once.
    """
    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    running: dict[Connection, tuple[int, Any]] = {}
    try:
        with signals_blocked(signal.SIGINT):  # a terminal sends Ctrl-C to the workers too
            for number, part in enumerate(parts):
                receive, send = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(work, part, send, os.getpid()), daemon=True)
                process.start()
                send.close()  # or the end of a worker could not be told from its silence
                running[receive] = number, process
        while running:
            ready = wait(list(running), timeout=_REPORT_S)
            for receive in ready:
                assert isinstance(receive, Connection)
                try:
                    message = receive.recv()
                except EOFError:
                    _check_ended(running.pop(receive)[1])
                    continue
                if isinstance(message, BaseException):
                    raise message
                yield running[receive][0], message
            if not ready:
                yield -1, None
    finally:
        with signals_ignored():
            for _, process in running.values():
                process.kill()
            for _, process in running.values():
                process.join()


def _work(work: Callable[[T], Iterator[Any]], part: T, send: Connection, parent: int) -> None:
    torch.set_num_threads(1)
    try:
        for message in work(part):
            if os.getppid() != parent:  # killed: nobody is left to end this process
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
        usual = {"SIGKILL": ", as happens when memory runs out", "SIGBUS": ", as happens when the source gets shorter"}
        raise UserError(
            f"num_workers: a worker was ended by {name}{usual.get(name, '')}\n"
            "The same command goes on from what is written; fewer workers need less memory"
        )
    if process.exitcode > 0:
        raise RuntimeError("a worker failed; its traceback is above")
