"""Worker processes of torch's DataLoader: how they are started and ended."""

from __future__ import annotations

import atexit
import multiprocessing
import multiprocessing.util
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import partial
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pickle import PicklingError
from traceback import clear_frames
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, default_convert, get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from feedrate.dataset.open_files import warn_of_open_files
from feedrate.errors import UserError
from feedrate.loader.batch import Batch
from feedrate.loader.buffers import SharedBatch, SharedBuffers, send_all_tensors
from feedrate.loader.engines.engine import Engine, RequestSampler, pin_device, pinned
from feedrate.loader.engines.lost_worker import MAIN_GUARD, iterator_of, lost_worker
from feedrate.loader.engines.receiver import NAME, Receiver
from feedrate.loader.fetcher import BatchFetcher
from feedrate.system.device import in_use
from feedrate.system.signals import STOPPING, ignore, signals_blocked
from feedrate.timing.engine_traits import EngineTraits

T = TypeVar("T")
CHECK_S = 0.5  # between checks that the workers are alive, while a batch is waited for


class Processes(Engine):
    """Workers of a private DataLoader: its batch sampler yields the requests, its dataset loads their batches."""

    traits = EngineTraits(shares_interpreter=False, has_processes=True, prefetches=True)

    def __init__(self, fetcher: BatchFetcher, requests: RequestSampler) -> None:
        super().__init__(fetcher, requests)
        self._inner: DataLoader[Any] | None = None
        self._buffers: SharedBuffers | None = None
        self._started = _Started([])

    def start(self, loader: DataLoader[Any]) -> Iterator[Batch]:
        """Starts the workers, or with persistent ones lets torch reuse them."""
        if self._persistent is None:
            self.close()
        elif not self._persistent.end():
            self.close(now=True)
        iterator = self.detect_lost_worker(lambda: self._iterator(loader))
        return Receiver(map(partial(_opened, pin_device(loader)), iterator), loader.timeout, self._started.kill)

    def detect_lost_worker(self, call: Callable[[], T]) -> T:
        try:
            return call()
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

    def worker_ids(self) -> list[tuple[int, int]]:
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
        # torch shuts them down when its iterator is freed, and waits for each
        self._inner = self._buffers = self._persistent = self._running = None
        self._started.kill()
        self._started = _Started([])

    def _iterator(self, loader: DataLoader[Any]) -> Iterator[Any]:
        # created here, so that workers do not create one each, whose sockets would stay when they are killed
        multiprocessing.util.get_temp_dir()
        send_all_tensors()  # of the dataset
        try:
            with warnings.catch_warnings():
                # the user's loader has warned already
                warnings.filterwarnings("ignore", "This DataLoader will create .* worker processes")
                private = self._private(loader)
                if is_forked(private):
                    warn_of_open_files(self._fetcher.dataset)
                # until a worker ignores these signals itself, they would end it
                with signals_blocked(*STOPPING):
                    iterator: Any = iter(private)
                    if iterator is not self._started.iterator:  # else persistent workers live on
                        self._started = _Started(iterator._workers, iterator)
                        _remember(self._started)
        except (PicklingError, AttributeError, TypeError) as error:
            if self._inner is None or is_forked(self._inner):
                raise
            method = self._inner.multiprocessing_context.get_start_method()
            raise UserError(
                f"loader.multiprocessing_context={method}: the dataset, its transforms or collate_fn cannot be pickled "
                f"({error})\nDefine them at the top of a module and open files in the worker, or set "
                "loader.multiprocessing_context=fork"
            ) from error
        except (EOFError, ConnectionError) as error:  # the forkserver ended, as it imports the program's file too
            raise UserError(f"the loader's worker processes could not be started\n{MAIN_GUARD}") from error
        except OSError as error:  # no process, no memory or no file descriptor is left
            if (half := iterator_of(error)) is not None:
                half._shutdown = True  # or it would print a traceback when it is collected
                self._started = _Started(list(half._workers))
            raise
        return iterator  # type: ignore[no-any-return]

    def _private(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        """The private DataLoader, kept as long as its workers persist."""
        if self._inner is None or not loader.persistent_workers:
            context = context_of(loader)
            parent: int | None = os.getpid()
            if context.get_start_method() == "forkserver":  # which then imports torch once, instead of each worker
                multiprocessing.set_forkserver_preload(["__main__", "torch"])
                parent = None
            self._buffers = SharedBuffers(loader.num_workers, loader.prefetch_factor or 2)
            fetcher = copy(self._fetcher)
            fetcher.buffers = self._buffers.slots
            self._inner = _Private(
                fetcher,
                batch_sampler=self._requests,
                num_workers=loader.num_workers,
                collate_fn=default_convert,  # leaves a Batch as it is
                worker_init_fn=partial(_start, loader.worker_init_fn, parent),
                multiprocessing_context=context,
                # of its own: creating an iterator would otherwise draw from the global generator
                generator=torch.Generator().manual_seed(0),
                prefetch_factor=loader.prefetch_factor,
                persistent_workers=loader.persistent_workers,
            )
        return self._inner


class _Private(DataLoader[Any]):
    def _get_iterator(self) -> Any:
        return _Iterator(self)


class _Iterator(_MultiProcessingDataLoaderIter):
    """torch's, but a dead worker is noticed where its batch is waited for, not by a signal handler anywhere."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._owner = os.getpid()
        super().__init__(loader)
        torch._C._remove_worker_pids(id(self))
        self._worker_pids_set = False

    def _try_get_data(self, timeout: float = CHECK_S) -> Any:
        return super()._try_get_data(timeout)  # type: ignore[no-untyped-call]

    def __del__(self, getpid: Callable[[], int] = os.getpid) -> None:  # not in a forked copy of this process
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
    """Has these workers killed when this process exits."""
    if os.getpid() not in _LEFT:  # a process that multiprocessing has started runs its finalizers, not atexit's
        multiprocessing.util.Finalize(None, _kill_left, exitpriority=0)
    alive = {each for each in _LEFT.get(os.getpid(), set()) if any(p.exitcode is None for p in each.processes)}
    _LEFT[os.getpid()] = {*alive, started}


@atexit.register  # later than multiprocessing's handler, so it runs earlier: that one waits for them for ever
def _kill_left() -> None:
    for started in list(_LEFT.get(os.getpid(), ())):
        started.kill()


def _start(user: Callable[[int], None] | None, parent: int | None, worker_id: int) -> None:
    """The private DataLoader's `worker_init_fn`; `get_worker_info()` shows the user's function the user's dataset.

    `parent` is the main process, None where a forkserver starts the workers.
    """
    info = get_worker_info()
    assert info is not None
    assert isinstance(info.dataset, BatchFetcher)
    object.__setattr__(info, "dataset", info.dataset.dataset)
    send_all_tensors()
    # SLURM, containers, Ctrl-C and a closed terminal signal the whole process group; the main process writes its
    # checkpoint first and then ends its workers
    ignore(STOPPING)
    if user is not None:
        user(worker_id)
    if parent not in (None, os.getppid()):  # it was killed; torch would watch the new parent
        os._exit(1)


def _opened(pin_device: str | None, batch: Batch) -> Batch:
    """The batch with tensors; pinned here, as torch's own thread would use the device before the next fork."""
    if isinstance(batch.data, SharedBatch):
        batch.data = batch.data.open()
    return pinned(batch, pin_device)


def context_of(loader: DataLoader[Any]) -> BaseContext:
    """How workers are started: by fork only where it is safe, before other threads and the device's runtime exist."""
    if loader.multiprocessing_context is not None:
        return loader.multiprocessing_context  # type: ignore[no-any-return]
    chosen = multiprocessing.get_start_method(allow_none=True)
    if chosen not in (None, "fork") or sys.platform != "linux":
        return multiprocessing.get_context(chosen)
    # a notebook always has threads, and its classes cannot be imported by another process
    notebook = not hasattr(sys.modules["__main__"], "__file__")
    # the threads of another loader's queues hold no lock that a worker of this one could need
    harmless = {thread for thread in threading.enumerate() if thread.name == NAME or "QueueFeeder" in thread.name}
    others = set(threading.enumerate()) - harmless - {threading.main_thread()}
    return multiprocessing.get_context("forkserver" if in_use() or (others and not notebook) else "fork")


def is_forked(loader: DataLoader[Any]) -> bool:
    """Whether the loader's workers are forked."""
    method: str = (loader.multiprocessing_context or multiprocessing).get_start_method()
    return method == "fork"
