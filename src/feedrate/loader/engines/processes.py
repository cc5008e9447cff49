"""The processes that load: how they are started, what they are given, and what it means when one is lost.

torch's DataLoader runs them; what they do with a request is fetch.py, and in which order requests come is order.py.
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

from feedrate.errors import LostWorker, UserError
from feedrate.loader.batch import BatchInfo, BatchRequests
from feedrate.loader.buffers import Lent, Ring, send_all_tensors
from feedrate.loader.device import in_use, pinned, pins
from feedrate.loader.engines.receiver import NAME, PATIENCE_S, Received, end_all
from feedrate.loader.fetcher import BatchFetcher
from feedrate.loader.open_files import warn_of_open_files
from feedrate.loader.order import Plan
from feedrate.system.signals import STOPPING, ignore, signals_blocked

T = TypeVar("T")
LOOK_S = 0.5  # between two looks whether the workers live, while a batch is waited for


class Workers:
    """A private DataLoader that turns the requests of a plan into the batches that `samples` makes of them."""

    def __init__(self, samples: BatchFetcher, requests: BatchRequests) -> None:
        self._samples, self._requests = samples, requests
        self._inner: DataLoader[Any] | None = None
        self._received: Received | None = None  # of workers that live on: the batches after those of a pass
        self._running: weakref.ref[Received] | None = None
        self._started = _Started([])
        self._ring: Ring | None = None

    def begin(self, plan: Plan, settings: DataLoader[Any]) -> Iterator[Any]:
        """Batches with their batch infos; the workers begin at once.

        Args:
            settings: the user's DataLoader, whose workers, context, timeout and so on are meant. It is not kept: a
                circle of references would leave the end of its workers to the cyclic collector.

        Raises:
            UserError: the dataset cannot be sent to them, or one of them is gone.
        """
        goes_on = self._requests.begin(plan)
        if self._received is not None and goes_on:
            return self._received
        if self._received is None:
            self.end()  # those of another pass that is not over, if there is one
        elif not self._received.end():  # torch's iterator is used again
            self.kill()
        iterator = self.watched(lambda: self._iterator(settings))
        batches = Received(map(partial(_opened, pins(settings)), iterator), settings.timeout, self._started.kill)
        self._running = weakref.ref(batches)
        self._received = batches if settings.persistent_workers else None
        return batches

    def watched(self, step: Callable[[], T]) -> T:
        """What `step` returns, which asks the workers for something.

        Raises:
            UserError: one of them is lost; the next `begin` starts new ones.
        """
        try:
            return step()
        except StopIteration:
            raise
        except BaseException as error:
            lost = lost_worker(error, self._started.processes)  # before the others are ended too
            self.kill()
            # torch's frames hold the workers and the error in a circle: they would outlive it, and end slowly
            clear_frames(error.__traceback__)
            if lost is None:
                raise
            raise lost from error

    def tasks(self) -> list[tuple[int, int]]:
        """Process and main thread of each worker that lives."""
        return [(p.pid, p.pid) for p in self._started.processes if p.pid is not None and p.exitcode is None]

    def rest(self) -> None:
        """A pass is over; they go on with the next one by themselves."""

    def end(self) -> None:
        """Ends them, whether they serve a pass or wait for the next epoch; who does not listen to torch is killed."""
        received = self._running() if self._running is not None else None
        if received is not None:
            received.end()
        del received
        with self._started.killed_after(PATIENCE_S):
            # torch says goodbye to them when nobody holds its iterator, and waits for each for twice that time
            self._inner = self._received = self._running = self._ring = None
        self._started = _Started([])

    def kill(self) -> None:
        """Ends them at once, whatever they do; they ignore the signals that ask politely."""
        received = self._running() if self._running is not None else None
        if received is not None:
            received.abandon()
        self._started.kill()
        self.end()

    def _iterator(self, settings: DataLoader[Any]) -> Iterator[Any]:
        # workers inherit the main process's temporary folder, which it removes at its end: their own, for the sockets
        # that tensors are sent by, would stay when they are killed
        multiprocessing.util.get_temp_dir()
        send_all_tensors()  # of the dataset
        try:
            with warnings.catch_warnings():
                # too many workers: said when the user's loader was made
                warnings.filterwarnings("ignore", "This DataLoader will create .* worker processes")
                private = self._private(settings)
                if _named(private.multiprocessing_context or multiprocessing) == "fork":
                    warn_of_open_files(self._samples.dataset)
                # a worker that has not begun yet would be ended by them, and by a closed terminal the helpers of
                # multiprocessing, which ignore the other two
                with signals_blocked(*STOPPING):
                    iterator = iter(private)
                    self._know(iterator)
        except (PicklingError, AttributeError, TypeError) as error:
            context = self._inner.multiprocessing_context if self._inner is not None else None
            method = context.get_start_method() if context is not None else "fork"
            if method == "fork":
                raise
            raise UserError(
                f"loader.multiprocessing_context={method}: what the workers need cannot be sent to them ({error})\n"
                "Define dataset, transforms and collate_fn at the top of a module and keep open files out of them, "
                "or set loader.multiprocessing_context=fork"
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
                f"loader.num_workers={settings.num_workers}: the system starts only "
                f"{len(self._started.processes)} of them "
                f"({error.strerror or error})\nLower loader.num_workers, or raise the limits of processes and open "
                "files (ulimit -u, ulimit -n)"
            ) from error
        return iterator

    def _know(self, iterator: Any) -> None:
        if iterator is not self._started.iterator:  # else those of the epoch before live on
            self._started = _Started(iterator._workers, iterator)
            _remember(self._started)

    def _private(self, settings: DataLoader[Any]) -> DataLoader[Any]:
        """The private DataLoader, kept while its workers live on between epochs."""
        if self._inner is None or not settings.persistent_workers:
            waiting = (settings.prefetch_factor or 2) if settings.num_workers else 0
            self._ring = Ring(settings.num_workers, waiting) if settings.num_workers else None
            context = settings.multiprocessing_context or start_method(settings.num_workers)
            by_server = (_named(context) or multiprocessing.get_start_method()) == "forkserver"
            self._inner = _Private(
                self._samples if self._ring is None else self._samples.over(self._ring),
                batch_sampler=self._requests,
                num_workers=settings.num_workers,
                collate_fn=_passed_on,
                worker_init_fn=_Start(settings.worker_init_fn, None if by_server else os.getpid()),
                multiprocessing_context=_preloaded(context),
                # of its own: creating an iterator would otherwise draw from the global generator
                generator=torch.Generator().manual_seed(0),
                prefetch_factor=settings.prefetch_factor,
                persistent_workers=settings.persistent_workers,
            )
        return self._inner


class _Private(DataLoader[Any]):
    """torch's, with iterators that know whose they are."""

    def _get_iterator(self) -> Any:
        return _Iterator(self) if self.num_workers else super()._get_iterator()


class _Iterator(_MultiProcessingDataLoaderIter):
    """A worker that dies is told where its batch is waited for; torch's handler of SIGCHLD would raise that in whatever
    the main process does just then, such as a step of training or the writing of a checkpoint.

    In a process that was forked while it lived, its workers are nobody's affair: torch's would print a traceback
    when it is collected there, which may be before anything else happens in that process.
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
    """The workers of one of torch's iterators, also when that is gone."""

    def __init__(self, processes: Sequence[BaseProcess], iterator: Any = None) -> None:
        self.processes = processes
        self._iterator = weakref.ref(iterator) if iterator is not None else None
        self._owner = os.getpid()

    @property
    def iterator(self) -> Any:
        return self._iterator() if self._iterator is not None else None

    @contextmanager
    def killed_after(self, seconds: float) -> Iterator[None]:
        """Ends those that are left after the block, or after so many seconds of it."""
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
        """Ends them at once; in a process that was forked from theirs it leaves them alone."""
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
        # one that was killed may have held the lock of the event that torch is going to set, for ever
        iterator._workers_done_event = threading.Event()
        # who waits for a batch finds out at once, not at torch's next look at the workers, one in five seconds
        iterator._worker_result_queue._writer.close()


_LEFT: dict[int, set[_Started]] = {}  # by the process that started them, as a forked one inherits all this


def _remember(started: _Started) -> None:
    """They are killed when this process ends, whoever knows of them by then."""
    if os.getpid() not in _LEFT:  # where multiprocessing has started this process, that is what it calls at its end
        multiprocessing.util.Finalize(None, _kill_left, exitpriority=0)
    alive = {each for each in _LEFT.get(os.getpid(), set()) if any(p.exitcode is None for p in each.processes)}
    _LEFT[os.getpid()] = {*alive, started}


def _iterator_of(error: BaseException) -> Any:
    """torch's iterator over worker processes that has raised an error, None for any other error."""
    step, found = error.__traceback__, None
    while step is not None:
        holder: Any = step.tb_frame.f_locals.get("self")
        found = holder if isinstance(holder, _MultiProcessingDataLoaderIter) else found
        step = step.tb_next
    return found


class _Start:
    """The private DataLoader's `worker_init_fn`: calls the user's, to which `get_worker_info()` shows his dataset.

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
        # a signal to the whole process group, as SLURM, containers, Ctrl-C and a closed terminal send it, is for the
        # main process, which ends its workers itself; dying by themselves, they would take the training with them
        # before its checkpoint
        ignore(STOPPING)
        if self.user is not None:
            self.user(worker_id)
        if self.parent not in (None, os.getppid()):  # killed meanwhile; torch would look for whoever is there now
            os._exit(1)


@atexit.register  # after multiprocessing's own handler was, so before it runs: that one waits for them without end
def _kill_left() -> None:
    for started in list(_LEFT.get(os.getpid(), ())):
        started.kill()
    end_all()


def helpers() -> list[tuple[int, int]]:
    """Process and thread of each thread in this one that takes batches over, or sends requests."""
    names = (NAME, "QueueFeeder")
    found = [thread for thread in threading.enumerate() if any(name in thread.name for name in names)]
    return [(os.getpid(), thread.native_id) for thread in found if thread.native_id is not None]


def _opened(pins: str | None, made: tuple[Any, BatchInfo]) -> tuple[Any, BatchInfo]:
    """As its user gets it; page-locked by the thread that receives it.

    torch's own thread for that begins with the workers, and uses the device before those of validation are forked.
    """
    batch, info = made
    batch = batch.open() if isinstance(batch, Lent) else batch
    return batch if pins is None or info.error is not None else pinned(batch, pins), info


def _passed_on(made: Any) -> Any:
    """The private DataLoader's collate function: the batch is made already."""
    return made


def _preloaded(context: Any) -> Any:
    """The context; the server of a forkserver imports torch once, instead of each worker for itself."""
    method = _named(context)
    if method == "forkserver":
        multiprocessing.set_forkserver_preload(["__main__", "torch"])
    if method in ("forkserver", "spawn") and os.name == "posix":
        with signals_blocked(signal.SIGHUP):
            resource_tracker.ensure_running()  # in its start it makes signals heard again that are `unheard`
    return context


def _named(context: Any) -> Any:
    return context if isinstance(context, str) or context is None else context.get_start_method()


def start_method(num_workers: int) -> str | None:
    """fork where it is safe: before any other thread, and before the device's runtime, is there."""
    if num_workers == 0 or sys.platform != "linux":
        return None
    if multiprocessing.get_start_method(allow_none=True) not in (None, "fork"):
        return None  # chosen by the user with set_start_method, or the default of this Python
    # a notebook always has threads, and its classes cannot be imported by another process
    notebook = not hasattr(sys.modules["__main__"], "__file__")
    # the threads at the queues of another loader's workers hold no lock that a worker of this one could want
    others = [
        thread
        for thread in threading.enumerate()
        if thread is not threading.main_thread() and thread.name != NAME and "QueueFeeder" not in thread.name
    ]
    return "forkserver" if in_use() or (others and not notebook) else "fork"


_GUARD = (
    'Put what the program runs behind `if __name__ == "__main__":`, and its classes and functions before that; '
    "workers that are not forked import its file"
)


def refuse_to_run_again() -> None:
    """For a process that multiprocessing starts, while it imports the program's file.

    Raises:
        UserError: this is such a process: each worker would silently run the whole program.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.tracebacklimit = 0  # this process ends here, and its traceback would only hide the sentence
        raise UserError(f"a worker process of the loader was about to run the whole program again\n{_GUARD}")


def lost_worker(error: BaseException, processes: Sequence[BaseProcess] = ()) -> UserError | None:
    """What an error says of a worker process that died, torch's DataLoader's included; None for any other error.

    Args:
        processes: the workers of the loader, where they are known.
    """
    while isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker") and error.__context__:
        error = error.__context__  # what torch raises meanwhile, as where it has been writing a file
    text = str(error).partition("\n")[0].strip()
    if isinstance(error, (RuntimeError, OSError)) and ("Too many open files" in text):
        return UserError(
            "the loader's worker processes need more open files than the system allows\n"
            "Raise the limit (ulimit -n), lower loader.num_workers or loader.prefetch_factor, or set "
            "loader.engine=thread"
        )
    died = isinstance(error, RuntimeError) and text.startswith("DataLoader worker")
    # a batch that was on its way cannot be fetched from a worker that is gone; "Caught" begins what a worker reports
    broken = isinstance(error, (ConnectionError, EOFError, FileNotFoundError)) and not text.startswith("Caught")
    raised_by = _iterator_of(error)
    if not (died or (broken and (processes or raised_by is not None))):
        return None
    processes = [*processes, *(raised_by._workers if raised_by is not None else ())]
    told = re.search(r"is killed by signal: (.+?)\.|exit code (\d+)", text)  # by torch's handler of SIGCHLD
    code = _exit_code(processes) if told is None else _NUMBERS.get(told[1]) or int(told[2] or 0)
    if not code or code > 0:
        how = "ended by itself" if not code else f"ended with exit code {code}"
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


def _exit_code(processes: Sequence[BaseProcess]) -> int | None:
    """Exit code of the worker that is gone, negative for a signal; it may take a moment until the system tells."""
    deadline = time.monotonic() + 1
    while processes and time.monotonic() < deadline:
        try:
            if codes := [process.exitcode for process in processes if process.exitcode]:
                return codes[0]
            time.sleep(0.01)
        except RuntimeError:  # torch's handler of SIGCHLD says again that it is gone
            continue
    return None
