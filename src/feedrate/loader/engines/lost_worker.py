"""The error of a worker process that has died: how it ended, and what to do."""

from __future__ import annotations

import multiprocessing
import re
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from feedrate.errors import LostWorker, UserError

MAIN_GUARD = (
    'Put what the program runs behind `if __name__ == "__main__":`, and its classes and functions before that; '
    "workers that are not forked import its file"
)
_SHORT = {
    "Too many open files": "Raise the limit of open files (ulimit -n)",
    "Resource temporarily unavailable": "Raise the limit of processes (ulimit -u)",
    "Cannot allocate memory": "Free some memory",
    "unable to allocate shared memory": "Enlarge /dev/shm",
}
_REMEDIES = {
    "SIGKILL": "Most likely memory ran out: lower loader.num_workers, loader.prefetch_factor or loader.batch_size",
    "SIGBUS": "Most likely shared memory ran out: enlarge /dev/shm, or lower loader.num_workers or prefetch_factor",
}
_NUMBERS = {signal.strsignal(one): -one.value for one in signal.Signals}


def refuse_to_run_again() -> None:
    """Raises UserError in a worker that imports the program's file: it would silently run the whole program."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.tracebacklimit = 0  # this process ends here
        raise UserError(f"a worker process of the loader was about to run the whole program again\n{MAIN_GUARD}")


def lost_worker(error: BaseException, processes: Sequence[BaseProcess] = ()) -> UserError | None:
    """The error of a worker process that died, also of torch's DataLoader; None if `error` means something else."""
    while isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker") and error.__context__:
        error = error.__context__  # raised while handling another one, as by torch.save
    text = str(error)
    if isinstance(error, (RuntimeError, OSError)) and (short := next((sign for sign in _SHORT if sign in text), None)):
        return UserError(
            f"the loader's worker processes failed with: {short}\n{_SHORT[short]}, lower loader.num_workers, "
            "loader.prefetch_factor or loader.batch_size, or set loader.engine=thread"
        )
    died = isinstance(error, RuntimeError) and text.startswith("DataLoader worker")
    # a batch in flight cannot be fetched from a dead worker; errors that a worker reports itself begin with "Caught"
    broken = isinstance(error, (ConnectionError, EOFError, FileNotFoundError)) and not text.startswith("Caught")
    if (raised_by := iterator_of(error)) is not None:
        processes = [*processes, *raised_by._workers]
    if not (died or (broken and processes)):
        return None
    reported = re.search(r"is killed by signal: (.+?)\.|exit code (\d+)", text)  # by torch's SIGCHLD handler
    code = _exit_code(processes) if reported is None else _NUMBERS.get(reported[1]) or int(reported[2] or 0)
    if not code or code > 0:
        how = f"ended with exit code {code}" if code else "ended by itself"
        forked = all(getattr(process, "_start_method", "fork") == "fork" for process in processes)
        remedy = "Load the samples one by one, dataset[index], to see at which one the process ends"
        return LostWorker(f"a worker of the loader {how}\n{remedy if forked or code != 1 else MAIN_GUARD}")
    name = signal.Signals(-code).name
    crashed = "If it was not stopped from outside, PYTHONFAULTHANDLER=1 prints the line at which it crashed"
    return LostWorker(f"a worker of the loader was ended by {name}\n{_REMEDIES.get(name, crashed)}")


def iterator_of(error: BaseException) -> Any:
    """torch's iterator over worker processes that has raised an error, None for any other error."""
    step, found = error.__traceback__, None
    while step is not None:
        holder: Any = step.tb_frame.f_locals.get("self")
        found = holder if isinstance(holder, _MultiProcessingDataLoaderIter) else found
        step = step.tb_next
    return found


def _exit_code(processes: Sequence[BaseProcess]) -> int | None:
    """Exit code of the worker that has died, negative for a signal; None if unknown."""
    with suppress(RuntimeError):  # torch's SIGCHLD handler raises once more
        gone = wait({process.sentinel for process in processes}, timeout=1)
        for process in processes:
            if process.sentinel in gone:
                process.join(1)  # the system may report it a moment later
    return next((process.exitcode for process in processes if process.exitcode), None)
