"""Chooses the engine; `auto` loads and times the first batches for that. Its limits: `benchmarks/run.py held`."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from torch.utils.data import DataLoader

from feedrate.dataset.rng import draws_from_globals
from feedrate.dataset.subset import unwrapped
from feedrate.dataset.time_limit import within
from feedrate.errors import UserError
from feedrate.loader.batch import Batch
from feedrate.loader.engines import TRAITS
from feedrate.loader.engines.lost_worker import refuse_to_run_again
from feedrate.loader.fetcher import BatchFetcher
from feedrate.loader.order import BatchRequest, Plan
from feedrate.timing.machine import queued_ns

log = logging.getLogger("feedrate")
HELD_MS = 1.0  # time a batch holds the GIL up to which threads cost the training no more than processes do
HELD_SHARE = 0.1  # share of a batch's time up to which threads are chosen however long it takes
ROUNDS = 3  # of the measurement, each of one batch and then two at once
BUDGET_MS = 400.0  # after which no other round begins
PATIENCE_S = 1.0  # a batch that takes longer is not followed by others to measure


class Choice(NamedTuple):
    """An engine, why, and the plan's first batches, which were loaded to measure and are delivered first."""

    engine: str
    reason: str
    batches: list[Batch]


def checked(engine: str, loader: DataLoader[Any]) -> str:
    """The engine, as far as it is known before a batch is loaded; raises UserError if it contradicts other settings."""
    if not loader.timeout <= threading.TIMEOUT_MAX:
        raise UserError(
            f"loader.timeout={loader.timeout:g}: must be at most {threading.TIMEOUT_MAX:g} seconds; 0 waits for ever"
        )
    if engine not in TRAITS:
        raise UserError(f"loader.engine={engine}: must be one of {', '.join(TRAITS)}")
    if loader.num_workers == 0:
        return "inline"
    if engine == "inline":
        raise UserError(
            f"loader.engine=inline has no workers, and loader.num_workers={loader.num_workers}; "
            "set loader.num_workers=0, or loader.engine=auto"
        )
    if engine == "thread" and loader.worker_init_fn is not None:
        raise UserError("loader.engine=thread: worker_init_fn is for processes; set loader.engine=process")
    return engine


def choose(fetcher: BatchFetcher, plan: Plan, loader: Any) -> Choice:
    """Resolves `loader.engine`; logs the choice of `auto`. No thread is left, so that processes can still be forked."""
    if loader.engine in ("auto", "process"):
        refuse_to_run_again()
    if loader.engine == "thread":
        return _tried(fetcher.in_threads(), plan, loader)
    if loader.engine != "auto":
        return Choice(loader.engine, "", [])
    if reason := unfit_for_threads(fetcher, loader, not fetcher.whole):
        choice = Choice("process", reason, [])
    else:
        choice = _tried(fetcher.in_threads(), plan, loader)
    log.info("loader.engine=auto: %s (%s)", choice.engine, choice.reason)
    return choice


def unfit_for_threads(fetcher: BatchFetcher, loader: DataLoader[Any], one_by_one: bool) -> str:
    """Why threads cannot be used, "" if they can."""
    if loader.worker_init_fn is not None:
        return "worker_init_fn is set"
    if loader.multiprocessing_context is not None:
        return f"multiprocessing_context={loader.multiprocessing_context.get_start_method()} is set"
    if one_by_one and not getattr(unwrapped(fetcher.dataset)[0], "thread_safe", False):
        return f"{fetcher.errors.name} gives samples one by one and does not say thread_safe = True"
    return ""


def _tried(fetcher: BatchFetcher, plan: Plan, loader: Any) -> Choice:
    """Chooses by the first batch, and for `auto` by a measurement of the next ones."""
    request, unfit, found = next(iter(plan)), "", None
    with draws_from_globals() as drew:
        first = within(loader.timeout, partial(fetcher.load, request), f"the batch of {fetcher.errors.named(request)}")
        batches, seconds = [first], first.info.load.ns / 1e9
        if loader.engine == "auto":
            unfit = unfit_for_threads(fetcher, loader, fetcher.came_one_by_one)
            if seconds > PATIENCE_S:
                unfit = unfit or f"a batch takes {seconds:.1f} s, too long to measure more"
            if not unfit and first.info.error is None:
                found = _measured(fetcher, plan, batches, loader.timeout)
    if drew:
        draws = f"{fetcher.errors.name} draws from {drew[0]} global random generator"
        if loader.engine == "auto":
            return Choice("process", draws, [])
        raise UserError(
            f"loader.engine=thread: {draws}, which threads share with the training\n"
            "Use feedrate.dataset.sample_rng(), whose numbers are each sample's own, or set loader.engine=process"
        )
    failed = next((at for at, batch in enumerate(batches) if batch.info.error is not None), None)
    if failed is not None or found is None:
        batches = batches if failed is None else batches[: failed + 1]
        return Choice("thread" if loader.engine == "thread" else "process", unfit or "a sample failed", batches)
    batch_ms, share = found
    held_ms = share * batch_ms
    reason = f"a batch takes {batch_ms:.2g} ms, {'at most ' * (share == 1)}{held_ms:.2g} ms of it with the GIL"
    return Choice("thread" if held_ms <= max(HELD_MS, HELD_SHARE * batch_ms) else "process", reason, batches)


def _measured(fetcher: BatchFetcher, plan: Plan, batches: list[Batch], timeout: float) -> tuple[float, float]:
    """Milliseconds of a batch, and the share of them with the GIL: the part of two batches that cannot overlap.

    Time that a thread queued for a core is left out: on a busy machine it says nothing about the GIL.
    """
    alone_ns, waits_ns, shares = [batches[0].info.load.ns], list[int](), [1.0]
    requests = islice(plan, 1, None)
    begin = time.perf_counter()
    for _ in range(ROUNDS):
        for threads in (1, 2):
            wanted = list(islice(requests, threads))
            if not wanted:
                break
            call = partial(_timed, fetcher, wanted, batches)
            with _long_switch_interval():
                spent, busy = within(timeout, call, f"the batch of {fetcher.errors.named(wanted[0])}")
            if threads == 1:
                alone_ns.append(spent)
                waits_ns.append(max(0, spent - busy[0]))  # for the disk, as a rule
            elif len(wanted) == threads:
                overlap = spent - max(busy) - min(waits_ns)
                shares.append(max(0.0, overlap / max(1, min(busy) + min(waits_ns))))
        if time.perf_counter() - begin > BUDGET_MS / 1e3 or batches[-1].info.error is not None:
            break
    return min(alone_ns) / 1e6, min(shares)


def _timed(fetcher: BatchFetcher, wanted: list[BatchRequest], batches: list[Batch]) -> tuple[int, list[int]]:
    """Loads and appends batches, each on its own thread: ns of all, and how long each computed or queued for a core."""
    loaded: list[Batch | None] = [None] * len(wanted)
    busy = [0] * len(wanted)
    ready = threading.Barrier(len(wanted))

    def load(at: int) -> None:
        begin = queued_ns() + time.thread_time_ns()
        ready.wait()
        loaded[at] = fetcher.load(wanted[at])
        busy[at] = queued_ns() + time.thread_time_ns() - begin

    others = [threading.Thread(target=load, args=(at,), daemon=True) for at in range(1, len(wanted))]
    for thread in others:
        thread.start()
    while ready.n_waiting < len(others):
        time.sleep(1e-4)
    begin = time.perf_counter_ns()
    load(0)
    for thread in others:
        thread.join()
    spent = time.perf_counter_ns() - begin
    batches += [batch for batch in loaded if batch is not None]
    return spent, busy


@contextmanager
def _long_switch_interval() -> Iterator[None]:
    """Lets a thread that waits for the GIL sleep until it is released, instead of waking up every 5 ms."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(PATIENCE_S)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
