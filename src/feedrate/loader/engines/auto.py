"""Chooses the engine; `auto` loads and times the first batches of an epoch for that.

What the engines cost a training step is measured by benchmarks/engines.py.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader

from feedrate.dataset.rng import draws_from_globals
from feedrate.dataset.subset import unwrapped
from feedrate.dataset.time_limit import within
from feedrate.errors import UserError
from feedrate.loader.batch import Batch, BatchRequest, requests_of
from feedrate.loader.engines.processes import refuse_to_run_again
from feedrate.loader.fetcher import BatchFetcher
from feedrate.loader.order import Plan
from feedrate.loader.resources import batches_in_flight, free_shared_memory, shown
from feedrate.timing.machine import queued_ns

log = logging.getLogger("feedrate")
NAMES = ("auto", "inline", "thread", "process")
HELD_MS = 1.0  # time a batch holds the GIL up to which threads cost the training no more than processes do
HELD_SHARE = 0.1  # share of a batch's time up to which threads are chosen however long it takes
ROUNDS = 3  # of the measurement, each of one batch and then two at once
BUDGET_MS = 200.0  # after which no other round begins
PATIENCE_MS = 1000.0  # for a batch that takes longer no more are loaded to measure
_ONE_BY_ONE = "{} gives samples one by one and does not say thread_safe = True"
_DRAWS = "{} draws from {} global random generator"


@dataclass(frozen=True)
class Choice:
    """An engine, why, and the plan's first batches, which were loaded to find out and are delivered first."""

    engine: str
    reason: str = ""
    batches: list[Batch] = field(default_factory=list)


def checked(engine: str, settings: DataLoader[Any]) -> str:
    """The engine, as far as it is known before a batch is loaded.

    Raises:
        UserError: it does not exist, or contradicts other settings.
    """
    if engine not in NAMES:
        raise UserError(f"loader.engine={engine}: must be one of {', '.join(NAMES)}")
    if settings.num_workers == 0:
        return "inline"
    if engine == "inline":
        raise UserError(
            f"loader.engine=inline has no workers, and loader.num_workers={settings.num_workers}; "
            "set loader.num_workers=0, or loader.engine=auto"
        )
    if engine == "thread" and settings.worker_init_fn is not None:
        raise UserError("loader.engine=thread: worker_init_fn is for processes; set loader.engine=process")
    return engine


def may_be_threads(fetcher: BatchFetcher, settings: DataLoader[Any]) -> bool:
    """Whether `auto` would consider threads for what a loader without workers has loaded."""
    safe = _says_thread_safe(fetcher.dataset) or not fetcher.came_one_by_one
    return safe and _decided(fetcher, settings) is None


def choose(fetcher: BatchFetcher, plan: Plan, loader: Any) -> Choice:
    """Resolves `loader.engine`; logs the choice of `auto`.

    No thread is left when it returns, so that processes can still be forked.

    Raises:
        UserError: with engine=thread, the dataset draws from a global random generator; or worker processes would run
            the whole program.
    """
    if loader.engine in ("auto", "process"):
        refuse_to_run_again()
    if loader.engine == "thread":
        batches, generator = _first(fetcher.in_threads(), plan, loader.timeout)
        if generator:
            raise UserError(
                f"loader.engine=thread: {_DRAWS.format(fetcher.name, generator)}, which threads share with the training"
                "\nUse feedrate.dataset.sample_rng(), whose numbers are each sample's own, or set loader.engine=process"
            )
        return Choice("thread", batches=batches)
    if loader.engine != "auto":
        return Choice(loader.engine)
    choice = _decided(fetcher, loader) or _pick(fetcher.in_threads(), plan, loader)
    log.info("loader.engine=auto: %s (%s)", choice.engine, choice.reason)
    return choice


def _decided(fetcher: BatchFetcher, settings: DataLoader[Any]) -> Choice | None:
    """The choice where other settings or the dataset's protocol decide."""
    if settings.worker_init_fn is not None:
        return Choice("process", "worker_init_fn is set")
    if settings.multiprocessing_context is not None:
        method = settings.multiprocessing_context.get_start_method()
        return Choice("process", f"multiprocessing_context={method} is set")
    if not fetcher.whole and not _says_thread_safe(fetcher.dataset):
        return Choice("process", _ONE_BY_ONE.format(fetcher.name))
    return None


def _pick(fetcher: BatchFetcher, plan: Plan, loader: DataLoader[Any]) -> Choice:
    batches, generator = _first(fetcher, plan, loader.timeout)
    if generator:
        return Choice("process", _DRAWS.format(fetcher.name, generator))
    if not batches or batches[0].info.error is not None:
        return Choice("process", "there is no batch to measure", batches)
    if fetcher.came_one_by_one and not _says_thread_safe(fetcher.dataset):
        return Choice("process", _ONE_BY_ONE.format(fetcher.name), batches)
    first = batches[0].info
    # for training and validation
    needed = 2 * batches_in_flight(loader.num_workers, loader.prefetch_factor or 2) * first.nbytes
    free = free_shared_memory()
    if free is not None and needed > free:
        lack = f"{shown(needed)} of shared memory, and {shown(free)} are free"
        return Choice("thread", f"processes would need {lack}", batches)
    if first.load.ns > PATIENCE_MS * 1e6:
        return Choice("process", f"a batch takes {first.load.ns / 1e9:.1f} s, too long to measure more", batches)
    with draws_from_globals() as drew:
        choice = _measured(fetcher, plan, batches, loader.timeout)
    return Choice("process", _DRAWS.format(fetcher.name, drew[0]), batches[:1]) if drew else choice


def _first(fetcher: BatchFetcher, plan: Plan, timeout: float) -> tuple[list[Batch], str]:
    """The first batch, and the global random generator it drew from; then without the batch, which is wrong."""
    request = next(requests_of(plan), None)
    if request is None:
        return [], ""
    with draws_from_globals() as drew:
        batch = within(timeout, lambda: fetcher.load(request), f"the batch of {fetcher.named(request)}")
    return ([], drew[0]) if drew else ([batch], "")


def _measured(fetcher: BatchFetcher, plan: Plan, first: list[Batch], timeout: float) -> Choice:
    """By the time of one batch, and by how far two threads slow each other down; the best time of each counts.

    Time that a thread queued for a core is left out: on a busy machine it says nothing about the GIL.
    """
    batches = first[:]
    alone_ns, waited_ns, shares = list[int](), list[int](), list[float]()
    begin = time.perf_counter()
    requests = islice(requests_of(plan), 1, None)  # the first batch also learned the layout of the files
    for _ in range(ROUNDS):
        for threads in (1, 2):
            wanted = list(islice(requests, threads))
            if not wanted:
                break
            with _long_switch_interval():
                timed = within(
                    timeout, partial(_timed, fetcher, wanted, batches), f"the batch of {fetcher.named(wanted[0])}"
                )
            if threads == 1:
                alone_ns.append(timed.ns - timed.queued_ns)
                waited_ns.append(max(0, timed.ns - timed.ready_ns[0]))  # for the disk, as a rule
            elif len(wanted) == threads:
                shares.append(_share_held(timed, min(waited_ns)))
        failed = [at for at, batch in enumerate(batches) if batch.info.error is not None]
        if failed:
            return Choice("process", "a sample failed while it was measured", batches[: failed[0] + 1])
        if time.perf_counter() - begin > BUDGET_MS / 1e3:
            break
    batch_ms = min(alone_ns, default=batches[0].info.load.ns) / 1e6
    share = min(shares, default=1.0)
    held_ms = share * batch_ms
    reason = f"a batch takes {batch_ms:.2g} ms, {'at most ' * (share == 1)}{held_ms:.2g} ms of it with the GIL"
    return Choice("thread" if held_ms <= max(HELD_MS, HELD_SHARE * batch_ms) else "process", reason, batches)


@dataclass(frozen=True)
class _Timed:
    """Batches loaded at the same time, each on its own thread.

    Attributes:
        ns: from the first one's begin to the last one's end.
        ready_ns: of each, the time its thread computed or queued for a core.
        queued_ns: the time the first one queued.
    """

    ns: int
    ready_ns: list[int]
    queued_ns: int


def _share_held(timed: _Timed, waited_ns: int) -> float:
    """The share of a batch's time with the GIL: only these parts of two batches cannot overlap.

    Args:
        waited_ns: what a batch alone waits for other than a core.
    """
    shorter, longer = sorted(timed.ready_ns)
    return min(1.0, max(0.0, (timed.ns - longer - waited_ns) / max(1, shorter + waited_ns)))


@contextmanager
def _long_switch_interval() -> Iterator[None]:
    """A thread that waits for the GIL sleeps until it is released, instead of waking, and queueing, every 5 ms."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(PATIENCE_MS / 1e3)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def _timed(fetcher: BatchFetcher, wanted: list[BatchRequest], batches: list[Batch]) -> _Timed:
    """Loads batches at the same time and appends them, in order."""
    fetcher.warm(batches[0].data, len(wanted))
    loaded: list[Batch | None] = [None] * len(wanted)
    ready_ns, queue = [0] * len(wanted), [0] * len(wanted)
    go, waiting = threading.Event(), threading.Semaphore(0)

    def load(at: int) -> None:
        queued, computed = queued_ns(), time.thread_time_ns()
        if at:
            waiting.release()
            go.wait()
        loaded[at] = fetcher.load(wanted[at])
        queue[at] = queued_ns() - queued
        ready_ns[at] = queue[at] + time.thread_time_ns() - computed

    others = [threading.Thread(target=load, args=(at,), daemon=True) for at in range(1, len(wanted))]
    for thread in others:
        thread.start()
        waiting.acquire()
    begin = time.perf_counter_ns()
    go.set()
    load(0)
    for thread in others:
        thread.join()
    spent = time.perf_counter_ns() - begin
    batches += [batch for batch in loaded if batch is not None]
    return _Timed(spent, ready_ns, queue[0])


def _says_thread_safe(dataset: Any) -> bool:
    return bool(getattr(unwrapped(dataset)[0], "thread_safe", False))
