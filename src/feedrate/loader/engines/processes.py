"""Worker processes of torch's DataLoader: how they are started and ended, and what a lost one means.

Longer than other files, as everything here knows the state of torch's private iterator.
"""

from __future__ import annotations

import atexit
import errno
import multiprocessing
import multiprocessing.util
import os
import re
import signal
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from pickle import PicklingError
from traceback import clear_frames
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from feedrate.dataset.open_files import warn_of_open_files
from feedrate.errors import LostWorker, UserError
from feedrate.loader.batch import Batch
from feedrate.loader.buffers import SharedBatch, SharedBuffers, send_all_tensors
from feedrate.loader.engines.engine import Engine
from feedrate.loader.engines.pinning import pinned, pins
from feedrate.loader.engines.receiver import NAME, PATIENCE_S, Receiver, end_all
from feedrate.loader.engines.scheduler import Scheduler
from feedrate.loader.fetcher import BatchFetcher
from feedrate.system.device import in_use
from feedrate.system.signals import STOPPING, ignore, signals_blocked
from feedrate.timing.engine_traits import EngineTraits

T = TypeVar("T")
LOOK_S = 0.5  # between checks that the workers live, while a batch is waited for


class Processes(Engine):
    """A private DataLoader whose batch sampler gives the requests and whose dataset loads a whole request."""

    traits = EngineTraits(shares_interpreter=False, has_processes=True, prefetches=True)

    def __init__(self, fetcher: BatchFetcher, scheduler: Scheduler) -> None:
        super().__init__(fetcher, scheduler)
        self._inner: DataLoader[Any] | None = None
        self._started = _Started([])

    def start(self, settings: DataLoader[Any]) -> Iterator[Batch]:
        """Starts the workers, or with persistent ones lets torch reuse them.

        Raises:
            UserError: the dataset cannot be pickled, or a worker is lost.
        """
        if self._persistent is None:
            self.close()
        elif not self._persistent.end():
            self.close(now=True)
        iterator = self.guard(lambda: self._iterator(settings))
        return Receiver(map(partial(_opened, pins(settings)), iterator), settings.timeout, self._started.kill)

    def guard(self, step: Callable[[], T]) -> T:
        try:
            return step()
        except StopIteration:
            raise
        except BaseException as error:
            lost = lost_worker(error, self._started.processes)  # before the others are ended too
            self.close(now=True)
            # torch's frames hold the workers and the error in a cycle: they would outlive it, and end slowly
            clear_frames(error.__traceback__)
            if lost is None:
                raise
            raise lost from error

    def tasks(self) -> list[tuple[int, int]]:
        return [(p.pid, p.pid) for p in self._started.processes if p.pid is not None and p.exitcode is None]

    def close(self, now: bool = False) -> None:
        """Shuts workers down; kills any that do not exit in time, or all of them `now`."""
        if (receiver := self.running) is not None:
            if now:
                receiver.abandon()
            else:
                receiver.end()
        del receiver
        if now:
            self._started.kill()
        with self._started.killed_after(PATIENCE_S):
            # torch shuts them down when its iterator is freed, and waits twice that time for each
            self._inner = self._persistent = self._running = None
        self._started = _Started([])

    def _iterator(self, settings: DataLoader[Any]) -> Iterator[Any]:
        # created here, so that workers do not create one each, whose sockets would stay when they are killed
        multiprocessing.util.get_temp_dir()
        send_all_tensors()  # of the dataset
        try:
            with warnings.catch_warnings():
                # the user's loader has warned already
                warnings.filterwarnings("ignore", "This DataLoader will create .* worker processes")
                private = self._private(settings)
                if _method_of(private.multiprocessing_context or multiprocessing) == "fork":
                    warn_of_open_files(self._fetcher.dataset)
                # until a worker ignores these signals itself, they would end it; SIGHUP also multiprocessing's helpers
                with signals_blocked(*STOPPING):
                    iterator: Any = iter(private)
                    if iterator is not self._started.iterator:  # else persistent workers live on
                        self._started = _Started(iterator._workers, iterator)
                        _remember(self._started)
        except (PicklingError, AttributeError, TypeError) as error:
            context = self._inner.multiprocessing_context if self._inner is not None else None
            if context is None or context.get_start_method() == "fork":
                raise
            raise UserError(
                f"loader.multiprocessing_context={context.get_start_method()}: the dataset, its transforms or "
                f"collate_fn cannot be pickled ({error})\n"
                "Define them at the top of a module and open files in the worker, or set "
                "loader.multiprocessing_context=fork"
            ) from error
        except (EOFError, ConnectionError) as error:  # the forkserver ended, as it imports the program's file too
            raise UserError(f"the loader's worker processes could not be started\n{_GUARD}") from error
        except OSError as error:  # no process, no memory or no file descriptor is left
            if error.errno not in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE):
                raise
            if (half := _iterator_of(error)) is not None:
                half._shutdown = True  # or it would print a traceback when it is collected
            self._started = _Started(list(half._workers) if half is not None else [])
            raise UserError(
                f"loader.num_workers={settings.num_workers}: the system starts only {len(self._started.processes)} of "
                f"them ({error.strerror or error})\nLower loader.num_workers, or raise the limits of processes and "
                "open files (ulimit -u, ulimit -n)"
            ) from error
        return iterator  # type: ignore[no-any-return]

    def _private(self, settings: DataLoader[Any]) -> DataLoader[Any]:
        """The private DataLoader, kept as long as its workers persist."""
        if self._inner is None or not settings.persistent_workers:
            context = settings.multiprocessing_context or start_method(settings.num_workers)
            by_server = (_method_of(context) or multiprocessing.get_start_method()) == "forkserver"
            self._inner = _Private(
                self._fetcher.over(SharedBuffers(settings.num_workers, settings.prefetch_factor or 2)),
                batch_sampler=self._scheduler,
                num_workers=settings.num_workers,
                collate_fn=_unchanged,
                worker_init_fn=_Start(settings.worker_init_fn, None if by_server else os.getpid()),
                multiprocessing_context=_preloaded(context),
                # of its own: creating an iterator would otherwise draw from the global generator
                generator=torch.Generator().manual_seed(0),
                prefetch_factor=settings.prefetch_factor,
                persistent_workers=settings.persistent_workers,
            )
        return self._inner


class _Private(DataLoader[Any]):
    def _get_iterator(self) -> Any:
        return _Iterator(self)


class _Iterator(_MultiProcessingDataLoaderIter):
    """torch's, with two changes.

    A dead worker is noticed where its batch is waited for: torch's SIGCHLD handler would raise wherever the main
    process is, such as in a training step or while a checkpoint is written. And in a process that was forked while it
    lived, `__del__` does nothing, where torch's would print a traceback.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._owner = os.getpid()
        super().__init__(loader)
        torch._C._remove_worker_pids(id(self))
        self._worker_pids_set = False

    def _try_get_data(self, timeout: float = LOOK_S) -> Any:
        return super()._try_get_data(timeout)  # type: ignore[no-untyped-call]

    def __del__(self, getpid: Callable[[], int] = os.getpid) -> None:
        if getpid() == self._owner:
            super().__del__()


class _Started:
    """The worker processes of one of torch's iterators; it may outlive the iterator."""

    def __init__(self, processes: Sequence[BaseProcess], iterator: Any = None) -> None:
        self.processes = processes
        self._iterator = weakref.ref(iterator) if iterator is not None else None
        self._owner = os.getpid()

    @property
    def iterator(self) -> Any:
        return self._iterator() if self._iterator is not None else None

    @contextmanager
    def killed_after(self, seconds: float) -> Iterator[None]:
        """Kills those that are left after the block, or while it takes longer than `seconds`."""
        timer = threading.Timer(seconds, self.kill)
        timer.daemon = True
        if any(process.exitcode is None for process in self.processes):
            timer.start()
        yield
        timer.cancel()
        if timer.ident is not None:
            timer.join()  # a thread would keep the next workers from being forked
        self.kill()

    def kill(self) -> None:
        """Kills them; does nothing in a forked process."""
        if os.getpid() != self._owner:
            return
        iterator = self.iterator
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
        _LEFT.get(self._owner, set()).discard(self)
        if iterator is None:
            return
        # a killed worker may hold the lock of the event that torch is going to set
        iterator._workers_done_event = threading.Event()
        # wakes a thread that waits for a batch; torch looks at the workers only every five seconds
        iterator._worker_result_queue._writer.close()


_LEFT: dict[int, set[_Started]] = {}  # by the process that started them, as a forked process inherits this


def _remember(started: _Started) -> None:
    """Has them killed when this process exits."""
    if os.getpid() not in _LEFT:  # a process that multiprocessing has started runs its finalizers, not atexit's
        multiprocessing.util.Finalize(None, _kill_left, exitpriority=0)
    alive = {each for each in _LEFT.get(os.getpid(), set()) if any(p.exitcode is None for p in each.processes)}
    _LEFT[os.getpid()] = {*alive, started}


@atexit.register  # after multiprocessing's own handler was, so before it runs: that one waits for them without end
def _kill_left() -> None:
    for started in list(_LEFT.get(os.getpid(), ())):
        started.kill()
    end_all()


class _Start:
    """The private DataLoader's `worker_init_fn`; `get_worker_info()` shows the user's function the user's dataset.

    Args:
        parent: the main process; None where a forkserver starts the workers.
    """

    def __init__(self, user: Callable[[int], None] | None, parent: int | None) -> None:
        self.user, self.parent = user, parent

    def __call__(self, worker_id: int) -> None:
        info = get_worker_info()
        assert info is not None
        assert isinstance(info.dataset, BatchFetcher)
        object.__setattr__(info, "dataset", info.dataset.dataset)
        send_all_tensors()
        # SLURM, containers, Ctrl-C and a closed terminal signal the whole process group; the main process writes its
        # checkpoint first and then ends its workers
        ignore(STOPPING)
        if self.user is not None:
            self.user(worker_id)
        if self.parent not in (None, os.getppid()):  # killed meanwhile; torch would watch the new parent
            os._exit(1)


def _opened(pins: str | None, batch: Batch) -> Batch:
    """The batch with tensors in place of a shared buffer.

    Pinned by the receiver's thread: torch's own pinning thread starts with the workers, and would use the device before
    the validation workers are forked.
    """
    if isinstance(batch.data, SharedBatch):
        batch.data = batch.data.open()
    return pinned(batch, pins)


def _unchanged(batch: Any) -> Any:
    """The private DataLoader's collate function."""
    return batch


def _preloaded(context: Any) -> Any:
    """The context; a forkserver imports torch once, instead of each worker."""
    method = _method_of(context)
    if method == "forkserver":
        multiprocessing.set_forkserver_preload(["__main__", "torch"])
    if method in ("forkserver", "spawn") and os.name == "posix":
        with signals_blocked(signal.SIGHUP):
            resource_tracker.ensure_running()  # while it starts it unblocks signals
    return context


def _method_of(context: Any) -> Any:
    return context if isinstance(context, str) or context is None else context.get_start_method()


def start_method(num_workers: int) -> str | None:
    """'fork' where it is safe: before other threads and the device's runtime exist; otherwise 'forkserver'.

    None leaves the choice to multiprocessing.
    """
    if num_workers == 0 or sys.platform != "linux":
        return None
    if multiprocessing.get_start_method(allow_none=True) not in (None, "fork"):
        return None  # chosen with set_start_method, or the default of this Python
    # a notebook always has threads, and its classes cannot be imported by another process
    notebook = not hasattr(sys.modules["__main__"], "__file__")
    # the threads of another loader's queues hold no lock that a worker of this one could need
    others = [
        thread
        for thread in threading.enumerate()
        if thread is not threading.main_thread() and thread.name != NAME and "QueueFeeder" not in thread.name
    ]
    return "forkserver" if in_use() or (others and not notebook) else "fork"


def is_forked(loader: DataLoader[Any], context: Any = None) -> bool:
    """Whether the loader's workers are forked; `context` is used where the loader names none."""
    method = _method_of(loader.multiprocessing_context or context) or multiprocessing.get_start_method(allow_none=True)
    return (method or multiprocessing.get_all_start_methods()[0]) == "fork"


# ---------------------------------------------------------------------------------------------------------
# lost workers
# ---------------------------------------------------------------------------------------------------------

_GUARD = (
    'Put what the program runs behind `if __name__ == "__main__":`, and its classes and functions before that; '
    "workers that are not forked import its file"
)


def refuse_to_run_again() -> None:
    """Raises UserError in a worker that imports the program's file: it would silently run the whole program."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.tracebacklimit = 0  # this process ends here
        raise UserError(f"a worker process of the loader was about to run the whole program again\n{_GUARD}")


def lost_worker(error: BaseException, processes: Sequence[BaseProcess] = ()) -> UserError | None:
    """The error of a worker process that died, also of torch's DataLoader; None if `error` means something else.

    Args:
        processes: the workers, where they are known.
    """
    while isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker") and error.__context__:
        error = error.__context__  # raised while handling another one, as by torch.save
    text = str(error).partition("\n")[0].strip()
    if isinstance(error, (RuntimeError, OSError)) and ("Too many open files" in text):
        return UserError(
            "the loader's worker processes need more open files than the system allows\n"
            "Raise the limit (ulimit -n), lower loader.num_workers or loader.prefetch_factor, or set "
            "loader.engine=thread"
        )
    died = isinstance(error, RuntimeError) and text.startswith("DataLoader worker")
    # a batch in flight cannot be fetched from a worker that is gone; "Caught" begins what a worker itself reports
    broken = isinstance(error, (ConnectionError, EOFError, FileNotFoundError)) and not text.startswith("Caught")
    raised_by = _iterator_of(error)
    if not (died or (broken and (processes or raised_by is not None))):
        return None
    processes = [*processes, *(raised_by._workers if raised_by is not None else ())]
    reported = re.search(r"is killed by signal: (.+?)\.|exit code (\d+)", text)  # by torch's SIGCHLD handler
    code = _exit_code(processes) if reported is None else _NUMBERS.get(reported[1]) or int(reported[2] or 0)
    if not code or code > 0:
        how = f"ended with exit code {code}" if code else "ended by itself"
        forked = all(getattr(process, "_start_method", "fork") == "fork" for process in processes)
        remedy = "Load the samples one by one, dataset[index], to see at which one the process ends"
        return LostWorker(f"a worker of the loader {how}\n{remedy if forked or code != 1 else _GUARD}")
    name = signal.Signals(-code).name
    remedy = {
        "SIGKILL": "Most likely memory ran out: lower loader.num_workers, loader.prefetch_factor or loader.batch_size",
        "SIGBUS": "Most likely shared memory ran out: enlarge /dev/shm, or lower loader.num_workers or prefetch_factor",
    }.get(name, "If it was not stopped from outside, PYTHONFAULTHANDLER=1 prints the line at which it crashed")
    return LostWorker(f"a worker of the loader was ended by {name}\n{remedy}")


_NUMBERS = {signal.strsignal(one): -one.value for one in signal.Signals}


def _iterator_of(error: BaseException) -> Any:
    """torch's iterator over worker processes that has raised an error, None for any other error."""
    step, found = error.__traceback__, None
    while step is not None:
        holder: Any = step.tb_frame.f_locals.get("self")
        found = holder if isinstance(holder, _MultiProcessingDataLoaderIter) else found
        step = step.tb_next
    return found


def _exit_code(processes: Sequence[BaseProcess]) -> int | None:
    """Exit code of the worker that is gone, negative for a signal; the system may report it a moment later."""
    deadline = time.monotonic() + 1
    while processes and time.monotonic() < deadline:
        try:
            if codes := [process.exitcode for process in processes if process.exitcode]:
                return codes[0]
            time.sleep(0.01)
        except RuntimeError:  # torch's SIGCHLD handler raises once more
            continue
    return None
