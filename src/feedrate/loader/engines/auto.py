"""Which engine loads: inline, thread or process; how `auto` picks one by loading the first batches of an epoch.

What an engine does is workers.py and threads.py. What the two cost a training step: benchmarks/engines.py.
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
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader, Subset

from feedrate.dataset.rng import draws_from_globals
from feedrate.dataset.time_limit import within
from feedrate.errors import UserError
from feedrate.loader.batch import BatchInfo, BatchRequest, requests_of
from feedrate.loader.digest import nbytes
from feedrate.loader.engines.processes import refuse_to_run_again
from feedrate.loader.fetcher import BatchFetcher
from feedrate.loader.order import Plan
from feedrate.loader.resources import batches_in_flight, free_shared_memory, shown
from feedrate.timing.machine import queued_ns

if TYPE_CHECKING:
    from feedrate.loader.loader import Loader

log = logging.getLogger("feedrate")
NAMES = ("auto", "inline", "thread", "process")
HELD_MS = 1.0  # of the interpreter's lock for a batch, up to which threads cost the training no more than processes do
HELD_SHARE = 0.1  # of a batch's own time, up to which threads are picked whatever it takes
ROUNDS = 3  # of the measurement, each of one batch and then two at once
BUDGET_MS = 200.0  # after which no other round begins
PATIENCE_MS = 1000.0  # of a batch that takes longer no more are made for the sake of measuring

Made = tuple[Any, BatchInfo]


@dataclass(frozen=True)
class Choice:
    """An engine, why, and the first batches of the plan, which were made to find out and are handed out first."""

    engine: str
    reason: str = ""
    made: list[Made] = field(default_factory=list)


def checked(engine: str, settings: DataLoader[Any]) -> str:
    """The engine as far as it is known before a sample is loaded.

    Raises:
        UserError: it does not exist, or does not go with the other settings.
    """
    if engine not in NAMES:
        raise UserError(f"loader.engine={engine}: must be one of {', '.join(NAMES)}")
    if settings.num_workers == 0:
        return "inline"
    if engine == "inline":
        raise UserError(
            f"loader.engine=inline has no workers, and loader.num_workers={settings.num_workers} asks for some; "
            "set loader.num_workers=0, or loader.engine=auto"
        )
    if engine == "thread" and settings.worker_init_fn is not None:
        raise UserError(
            "loader.engine=thread: worker_init_fn sets up a process of its own, which a thread is not; "
            "set loader.engine=process"
        )
    return engine


def may_be_threads(loader: Loader[Any]) -> bool:
    """Whether threads can be trusted with what a loader without workers has loaded; as `auto` sees it."""
    samples = loader._samples
    said = _says_thread_safe(samples.dataset) or not samples.came_one_by_one
    return said and _given(samples, loader) is None


def choose(samples: BatchFetcher, plan: Plan, loader: Loader[Any]) -> Choice:
    """Settles `loader.engine`, with some of the plan's batches made where that is needed; says so on one line.

    No thread is left when it returns, so that processes can still be forked.

    Raises:
        UserError: engine=thread is asked for, and the dataset draws from a global random generator; or worker processes
            would run the whole program.
    """
    if loader.engine in ("auto", "process"):
        refuse_to_run_again()
    if loader.engine == "thread":
        return _thread(samples.in_threads(), plan, loader.timeout)
    if loader.engine != "auto":
        return Choice(loader.engine)
    choice = _given(samples, loader) or _pick(samples.in_threads(), plan, loader)
    log.info("loader.engine=auto: %s, %s", choice.engine, choice.reason)
    return choice


def _thread(samples: BatchFetcher, plan: Plan, timeout: float) -> Choice:
    made, drew = _look(samples, plan, timeout)
    if drew:
        raise UserError(
            f"loader.engine=thread: {samples.name} draws from {drew} global random generator, which threads share with "
            "the training\nUse feedrate.dataset.sample_rng(), whose numbers are each sample's own, or set "
            "loader.engine=process"
        )
    return Choice("thread", made=made)


def _given(samples: BatchFetcher, loader: Loader[Any]) -> Choice | None:
    """What other settings decide, and what threads cannot be trusted with."""
    if loader.worker_init_fn is not None:
        return Choice("process", "which worker_init_fn is for")
    if loader.multiprocessing_context is not None:
        method = loader.multiprocessing_context.get_start_method()
        return Choice("process", f"which multiprocessing_context={method} is for")
    if not samples.whole and not _says_thread_safe(samples.dataset):
        return Choice("process", f"since {samples.name} gives samples one by one and does not say thread_safe = True")
    return None


def _pick(samples: BatchFetcher, plan: Plan, loader: Loader[Any]) -> Choice:
    made, drawn_from = _look(samples, plan, loader.timeout)
    if drawn_from:
        return Choice("process", f"since {samples.name} draws from {drawn_from} global random generator")
    if not made or made[0][1].error is not None:
        return Choice("process", "since there is no batch that could be measured", made)
    if samples.came_one_by_one and not _says_thread_safe(samples.dataset):
        return Choice(
            "process", f"since {samples.name} gives samples one by one and does not say thread_safe = True", made
        )
    # training and validation each
    needed = 2 * batches_in_flight(loader.num_workers, loader.prefetch_factor or 2) * nbytes(made[0][0])
    free = free_shared_memory()
    if free is not None and needed > free:
        lack = f"{shown(needed)} of shared memory, and {shown(free)} are free"
        return Choice("thread", f"since processes would need {lack}", made)
    first_ns = made[0][1].load.ns
    if first_ns > PATIENCE_MS * 1e6:
        return Choice("process", f"since a batch takes {first_ns / 1e9:.1f} s, too long to measure more", made)
    with draws_from_globals() as drew:
        choice = _measured(samples, plan, made[0], loader.timeout)
    return (
        Choice("process", f"since {samples.name} draws from {drew[0]} global random generator", made)
        if drew
        else choice
    )


def _look(samples: BatchFetcher, plan: Plan, timeout: float) -> tuple[list[Made], str]:
    """The first batch, and whose global random generator it drew from; then there is no batch, as it would be wrong."""
    request = next(requests_of(plan), None)
    if request is None:
        return [], ""
    with draws_from_globals() as drew:
        made = within(timeout, lambda: samples.make(request), f"the batch of {samples.named(request)}")
    return ([], drew[0]) if drew else ([made], "")


def _measured(samples: BatchFetcher, plan: Plan, first: Made, timeout: float) -> Choice:
    """By what a batch costs, and by how far two threads get in each other's way; of each the best time counts.

    What a thread waits for a core counts for neither: on a busy machine that is no sign of the interpreter's lock.
    """
    made = [first]
    alone_ns, waited_ns, shares = list[int](), list[int](), list[float]()
    begin = time.perf_counter()
    requests = islice(requests_of(plan), 1, None)  # with the first batch it was also learned how the files are built
    for _ in range(ROUNDS):
        for threads in (1, 2):
            wanted = list(islice(requests, threads))
            if not wanted:
                break
            with _long_turns():
                timed = within(
                    timeout, partial(_timed, samples, wanted, made), f"the batch of {samples.named(wanted[0])}"
                )
            if threads == 1:
                alone_ns.append(timed.ns - timed.queued_ns)
                waited_ns.append(max(0, timed.ns - timed.ready_ns[0]))  # for the disk, as a rule
            elif len(wanted) == threads:
                shares.append(_share_held(timed, min(waited_ns)))
        if any(info.error is not None for _, info in made):
            return Choice("process", "since a sample failed while it was measured", _until_error(made))
        if time.perf_counter() - begin > BUDGET_MS / 1e3:
            break
    batch_ms = min(alone_ns, default=first[1].load.ns) / 1e6
    share = min(shares, default=1.0)
    held_ms, count = share * batch_ms, len(first[1].request.indices)
    size = nbytes(first[0])
    shown = f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} KB"
    text = f"as a batch of {shown} takes {batch_ms:.2g} ms"
    text += f" ({1e3 * batch_ms / count:.0f} us a sample)"
    text += f" and holds the interpreter for {'at most ' * (share == 1)}{held_ms:.2g} ms of it"
    return Choice("thread" if held_ms <= max(HELD_MS, HELD_SHARE * batch_ms) else "process", text, made)


def _share_held(timed: _Timed, waited_ns: int) -> float:
    """Of two batches at once, the shares that hold the interpreter's lock come one after the other.

    Args:
        waited_ns: what a batch alone waits for other than a core.
    """
    shorter, longer = sorted(timed.ready_ns)
    return min(1.0, max(0.0, (timed.ns - longer - waited_ns) / max(1, shorter + waited_ns)))


@contextmanager
def _long_turns() -> Iterator[None]:
    """Within it a thread that waits for the interpreter's lock sleeps until it is given up.

    It would look each 5 ms whether the lock is free, and queue for a core each time where these are scarce.
    """
    interval = sys.getswitchinterval()
    sys.setswitchinterval(PATIENCE_MS / 1e3)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


@dataclass(frozen=True)
class _Timed:
    """Batches that were made at once, each on a thread of its own.

    Attributes:
        ns: from the begin of the first to the end of the last.
        ready_ns: of each, that its thread was computing, or could have but had no core.
        queued_ns: the latter of the first one.
    """

    ns: int
    ready_ns: list[int]
    queued_ns: int


def _timed(samples: BatchFetcher, wanted: list[BatchRequest], made: list[Made]) -> _Timed:
    """Makes batches, which are added to `made` in their order."""
    samples.warm(made[0][0], len(wanted))
    found: list[Made | None] = [None] * len(wanted)
    ready_ns, queue = [0] * len(wanted), [0] * len(wanted)
    go = threading.Event()

    def load(at: int) -> None:
        queued, computed = queued_ns(), time.thread_time_ns()
        if at:
            waiting.release()
            go.wait()
        found[at] = samples.make(wanted[at])
        queue[at] = queued_ns() - queued
        ready_ns[at] = queue[at] + time.thread_time_ns() - computed

    waiting = threading.Semaphore(0)
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
    made += [one for one in found if one is not None]
    return _Timed(spent, ready_ns, queue[0])


def _until_error(made: list[Made]) -> list[Made]:
    """Up to the first that failed."""
    failed = next(at for at, (_, info) in enumerate(made) if info.error is not None)
    return made[: failed + 1]


def _says_thread_safe(dataset: Any) -> bool:
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return bool(getattr(dataset, "thread_safe", False))
