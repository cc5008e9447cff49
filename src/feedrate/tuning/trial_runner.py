"""Trains a throwaway model, or sleeps, on a loader's batches for some seconds: the trials of tune.py and bench.py."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from feedrate.config import TrainerConfig
from feedrate.dataset import Data
from feedrate.errors import UserError
from feedrate.loader import TRAITS, ToDevice, build_loaders, close_loaders, setup_of, start_loaders
from feedrate.system.device import has_streams, out_of_memory
from feedrate.task.task import Task
from feedrate.timing import Clock, EpochTimes
from feedrate.timing.epoch_times import MIN_STEPS, Setup, cut
from feedrate.trainer.assemble import build_model, build_optimizer
from feedrate.trainer.device import choose_precision
from feedrate.trainer.forward import Forward, cause_of

WARMUP = 3  # steps, beside each worker's first batch
PROBED = 10  # batches that engine `auto` loads to decide; they are ready when requested
STALL_S, STALL = 0.5, 20  # a step is a stall above so many seconds and so many times the median
SPARE = 0.1  # share of the device's memory that the largest batch leaves free


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
        loader: started.
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


@dataclass(frozen=True)
class Setting:
    """What is tuned of a loader."""

    num_workers: int
    prefetch_factor: int = 2
    engine: str = "inline"

    @property
    def overrides(self) -> dict[str, Any]:
        """Keys of the loader."""
        if not self.num_workers:
            return {"num_workers": 0, "engine": "auto", "prefetch_factor": None}
        return {"num_workers": self.num_workers, "engine": self.engine, "prefetch_factor": self.prefetch_factor}

    @property
    def threads(self) -> bool:
        """Whether the workers are threads."""
        return self.num_workers > 0 and TRAITS[self.engine].shares_interpreter

    @property
    def cost(self) -> tuple[int, bool, int]:
        """Orders settings: fewer workers first, then less memory, of which each process has its own."""
        return self.num_workers, TRAITS[self.engine].has_processes, self.prefetch_factor

    def distance(self, other: Setting) -> tuple[int, int]:
        """How far another setting of the same engine is: workers first, then the queue."""
        return abs(self.num_workers - other.num_workers), abs(self.prefetch_factor - other.prefetch_factor)

    def __str__(self) -> str:
        if not self.num_workers:
            return "no workers"
        kind = {"auto": "worker"}.get(self.engine, self.engine)
        plural = ("es" if kind.endswith("s") else "s") if self.num_workers > 1 else ""
        return f"{self.num_workers} {kind}{plural}, {self.prefetch_factor} prefetched each"


class TrialRunner:
    """Runs trials with a throwaway model.

    Attributes:
        node: conf/loader in use, whose keys a setting overrides; `fits` changes its batch size.
        may_be_threads: whether the dataset allows threads; known after a run without workers.
    """

    def __init__(
        self,
        config: TrainerConfig,
        data: Data,
        node: Mapping[str, Any],
        model: Mapping[str, Any],
        optimizer: Mapping[str, Any],
        seed: int,
        device: torch.device,
    ) -> None:
        self._data, self.node, self._seed, self.device = data, node, seed, device
        self.may_be_threads = False
        precision, last = choose_precision(config.precision, device), config.channels_last
        self._model = build_model(model, data, device, last)
        self._optimizer = build_optimizer(optimizer, self._model, device)
        self._forward = Forward(self._model, data, device, precision, config.compile, channels_last=last)
        self._task = Task(data.targets, config.label_smoothing, top5=False)
        self._model.train()

    def step(self, X: Tensor, y: Tensor) -> Tensor:
        """Trains on a batch on the device; returns its loss."""
        loss = self._task.loss(self._forward(X), y)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss

    def run(self, setting: Setting, seconds: float, until: float = float("inf")) -> tuple[EpochTimes, Setup]:
        """Trains with a setting for some seconds after a warm-up; see `timed_steps`.

        Raises:
            UserError: too little memory, or a sample or the model fails.
        """
        with self._opened(setting.overrides) as loader:
            try:
                times = timed_steps(loader, self.device, lambda batch: self.step(batch.X, batch.y), seconds, until)
            except RuntimeError as error:
                if (explained := cause_of(error)) is None:
                    raise
                raise explained from error
            self.may_be_threads = self.may_be_threads or loader.threadable
            return times, setup_of(loader)

    def fits(self, batch_size: int) -> bool:
        """Trains on two batches of that size, and keeps it; False: they leave less than a tenth of the device's memory.

        Raises:
            UserError: a sample or the model fails.
        """
        before = self.node
        self.node = {**before, "batch_size": batch_size}
        room = _room(self.device)
        try:
            self.run(Setting(0), 0.0, until=0.0)
            fits = room is None or torch.accelerator.max_memory_reserved(self.device) <= (1 - SPARE) * room
        except UserError as error:
            if not out_of_memory(error.__cause__):
                raise
            self._optimizer.zero_grad(set_to_none=True)
            fits = False
        if not fits:
            self.node = before
        return fits

    def digests(self, setting: Setting, batches: int) -> tuple[str, str]:
        """Order digest and content digest of the first batches.

        Raises:
            UserError: the batches hold values without a definite content.
        """
        with self._opened({**setting.overrides, "content_digest": True}) as loader:
            for _ in islice(loader, batches):
                pass
            return loader.order_digest(), loader.content_digest()

    def _opened(self, overrides: Mapping[str, Any]) -> AbstractContextManager[Any]:
        return opened({**self.node, **overrides}, self._data, self._seed, self.device)


def _room(device: torch.device) -> int | None:
    """Bytes of the device's memory that are free or reserved by this process; None if unknown. Resets the peak."""
    if not has_streams(device):
        return None
    torch.accelerator.synchronize(device)
    torch.accelerator.empty_cache()
    torch.accelerator.reset_peak_memory_stats(device)
    return int(torch.accelerator.get_memory_info(device)[0]) + int(torch.accelerator.memory_reserved(device))
