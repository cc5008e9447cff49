"""Opens a loader, and runs steps on its batches for some seconds and times them: the trials of tune.py and bench.py."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from feedrate.dataset import Data
from feedrate.loader import ToDevice, build_loaders, close_loaders, start_loaders
from feedrate.timing import Clock, EpochTimes
from feedrate.timing.epoch_times import MIN_STEPS, cut

WARMUP = 3  # steps, beside each worker's first batch
PROBED = 10  # batches that engine `auto` loads to decide; they are ready when requested
STALL_S, STALL = 0.5, 20  # a step is a stall above so many seconds and so many times the median


@contextmanager
def opened(node: Mapping[str, Any], data: Data, seed: int, device: torch.device) -> Iterator[Any]:
    """The training loader of a conf/loader node, started, and closed at the end.

    Raises:
        UserError: the errors of `build_loaders`.
    """
    log = logging.getLogger("feedrate")
    level = log.level
    log.setLevel(logging.WARNING)  # no notes on settings that the user has not chosen
    try:
        loaders = build_loaders(node, data, seed, device)
    finally:
        log.setLevel(level)
    loader = loaders["train"]
    try:
        start_loaders(loaders, ("train",))
        yield loader
    finally:
        # a thread that is still loading would keep the next workers from being forked
        close_loaders(loaders, at_once=not loader.traits.shares_interpreter)


def timed_steps(
    loader: Any,
    device: torch.device,
    step: Callable[[Any], object],
    seconds: float,
    until: float = float("inf"),
    warmed_up: Callable[[], object] = lambda: None,
) -> EpochTimes:
    """The times of `seconds` of steps after a warm-up, epoch after epoch.

    Args:
        loader: a SeededLoader or a TorchLoader, started.
        step: trains on a batch on the device.
        until: instant of time.perf_counter at which it ends, after one steady step or more.
        warmed_up: called when the warm-up ends.
    """
    clock = Clock(device, 1)
    warm: int = loader.num_workers + WARMUP + (PROBED if loader.traits.prefetches else 0)
    begin = steady_from = time.perf_counter()
    steps = 0
    clock.begin()
    for batch in _endless(loader, device, clock):
        steps += 1  # noqa: SIM113
        step(batch)
        samples, info = len(batch.X), batch.info
        del batch  # freeing it releases the GIL, which must not count as waiting; enumerate() would keep it, too
        clock.step(samples, info.nbytes, info.timing)
        now = time.perf_counter()
        if steps < warm and now - begin >= seconds:  # long steps need no more
            warm = steps
        if steps == warm:
            clock.settle()
            warmed_up()
        if steps <= warm:
            steady_from = now
        elif now >= until or (steps >= warm + MIN_STEPS and now - steady_from >= seconds):
            break
    times = cut(clock.epoch(), slice(warm, None))
    # steps during which the whole machine stood still, as a paused virtual one does, do not count
    stalled = times.work > max(1e9 * STALL_S, STALL * float(np.median(times.work)))
    return replace(times, steady=times.steady & ~stalled)


def _endless(loader: Any, device: torch.device, clock: Clock) -> Iterator[Any]:
    while True:
        yield from ToDevice(loader, device, clock)
