"""A model that trains on what a loader gives, for as long as is asked, to see how fast the two go together.

Which settings are tried is tune.py's affair; a real training is loop.py.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
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
from feedrate.loader.device import has_streams
from feedrate.system.device_errors import out_of_memory
from feedrate.task.task import Task
from feedrate.timing import Clock, EpochTimes
from feedrate.timing.epoch_times import MIN_STEPS, Setup, cut
from feedrate.trainer.assemble import build_model, build_optimizer
from feedrate.trainer.device import choose_precision
from feedrate.trainer.forward import Forward

MEASURED = 10  # batches that the engine `auto` makes to decide, and hands out without anybody waiting for them

SPARE = 0.1  # of the device's memory that the largest batch leaves free
STALL_S, STALL = 0.5, 20  # a step takes longer than so many seconds, and so many times the middle one


@dataclass(frozen=True)
class Setting:
    """How a loader loads, as far as it is tuned."""

    num_workers: int
    prefetch_factor: int = 2
    engine: str = "inline"
    pin_memory: bool | None = None

    @property
    def overrides(self) -> dict[str, Any]:
        """As keys of the loader; pin_memory None leaves it as it is."""
        pinned = {} if self.pin_memory is None else {"pin_memory": self.pin_memory}
        if not self.num_workers:
            return {"num_workers": 0, "engine": "auto", "prefetch_factor": None, **pinned}
        own = {"num_workers": self.num_workers, "engine": self.engine, "prefetch_factor": self.prefetch_factor}
        return {**own, **pinned}

    @property
    def threads(self) -> bool:
        """Whether the workers are threads."""
        return self.num_workers > 0 and TRAITS[self.engine].shares_interpreter

    @property
    def cost(self) -> tuple[int, bool, int, bool]:
        """What is lower needs less: CPU first, then memory, of which a process has its own."""
        return self.num_workers, TRAITS[self.engine].has_processes, self.prefetch_factor, self.pin_memory is not False

    def __str__(self) -> str:
        pinned = "" if self.pin_memory is None else f", pin_memory={str(self.pin_memory).lower()}"
        if not self.num_workers:
            return f"no workers{pinned}"
        kind = {"auto": "worker"}.get(self.engine, self.engine)
        plural = ("es" if kind.endswith("s") else "s") if self.num_workers > 1 else ""
        return f"{self.num_workers} {kind}{plural}, {self.prefetch_factor} batches ahead each{pinned}"


class TrialRunner:
    """A model that trains on what a loader gives; its weights are nobody's.

    Args:
        node: conf/loader; what a setting does not name is taken from it.

    Attributes:
        may_be_threads: whether threads may load this dataset; known when there was a run without workers.
        pins: whether batches are copied through page-locked memory unless a setting says otherwise.
        node: conf/loader as it is used.
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
        self.pins = has_streams(device) and node["pin_memory"] in ("auto", True)
        precision = choose_precision(config.precision, device)
        self._model = build_model(model, data, device, config.channels_last)
        self._optimizer = build_optimizer(optimizer, self._model, device)
        last = config.channels_last
        self._forward = Forward(self._model, data, device, precision, config.compile, channels_last=last)
        self._task = Task(data.targets, config.label_smoothing, top5=False)
        self._model.train()

    def step(self, X: Tensor, y: Tensor) -> Tensor:
        """Trains on a batch on the device, X as loaded; its loss."""
        loss = self._task.loss(self._forward(X), y)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss

    def run(self, setting: Setting, seconds: float, until: float = float("inf")) -> tuple[EpochTimes, Setup]:
        """The account of so many seconds of training with a loader of that setting, warm-up left out.

        Args:
            until: instant of time.perf_counter at which it ends in any case, with one steady step or more.

        Raises:
            UserError: there is no room for it, or a sample or the model fails.
        """
        loaders = self._loaders(setting.overrides)
        loader = loaders["train"]
        clock = Clock(self.device, 1)
        try:
            start_loaders(loaders, ("train",), self._data, later=("validation",))
            warm = _trained(self, loader, clock, seconds, until)
            self.may_be_threads = self.may_be_threads or loader.threadable
            return _without_stalls(cut(clock.epoch(), slice(warm, None))), setup_of(loader)
        except RuntimeError as error:
            if (told := self._forward.explained(error)) is None:
                raise
            raise told from error
        finally:
            # a thread that still loads would keep the next workers from being forked
            close_loaders(loaders, at_once=not loader.traits.shares_interpreter)

    def fits(self, batch_size: int) -> bool:
        """Trains on two batches of that size, which stays; False: the device's memory is too small for it and a tenth
        that stays free, for what other batches and other programs need.

        Raises:
            UserError: a sample or the model fails.
        """
        former = self.node
        self.node = {**former, "batch_size": batch_size}
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
            self.node = former
        return fits

    def digests(self, overrides: Mapping[str, Any], batches: int) -> tuple[str, str]:
        """Of the order of the first batches and of what they hold, with keys of the loader changed.

        The second is empty where it cannot be told.
        """
        try:
            return self._digests({**overrides, "content_digest": True}, batches)
        except UserError:  # they hold something without a definite content
            return self._digests(overrides, batches)

    def _loaders(self, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Without the notes on settings that nobody has chosen."""
        log = logging.getLogger("feedrate")
        level = log.level
        log.setLevel(logging.WARNING)
        try:
            return build_loaders({**self.node, **overrides}, self._data, self._seed, self.device)
        finally:
            log.setLevel(level)

    def _digests(self, overrides: Mapping[str, Any], batches: int) -> tuple[str, str]:
        loaders = self._loaders(overrides)
        loader = loaders["train"]
        try:
            start_loaders(loaders, ("train",), self._data)
            for _ in islice(loader, batches):
                pass
            return loader.order_digest(), loader.content_digest() or ""
        finally:
            close_loaders(loaders, at_once=not loader.traits.shares_interpreter)


def _room(device: torch.device) -> int | None:
    """Bytes of the device's memory that are free or this process's own; None where that is not known.

    The peak of what is reserved is counted from now on.
    """
    if not has_streams(device):
        return None
    torch.accelerator.synchronize(device)
    torch.accelerator.empty_cache()
    torch.accelerator.reset_peak_memory_stats(device)
    return int(torch.accelerator.get_memory_info(device)[0]) + int(torch.accelerator.memory_reserved(device))


def _trained(bed: TrialRunner, loader: Any, clock: Clock, seconds: float, until: float) -> int:
    """Trains for `seconds` after the warm-up; how many steps that took: each worker's first batch, and a few more."""
    warm: int = loader.num_workers + 3 + (MEASURED if loader.traits.prefetches else 0)
    begin = steady_from = time.perf_counter()
    steps = 0
    clock.begin()
    for batch in _endless(loader, bed.device, clock):
        steps += 1  # noqa: SIM113
        bed.step(batch.X, batch.y)
        samples, info = len(batch.X), batch.info
        del batch  # as in Trainer._train; enumerate() would keep it, too
        clock.step(samples, info.nbytes, info.timing)
        now = time.perf_counter()
        if steps < warm and now - begin >= seconds:  # long steps need no more
            warm = steps
        if steps == warm:
            clock.settle()
        if steps <= warm:
            steady_from = now
        elif now >= until or (steps >= warm + MIN_STEPS and now - steady_from >= seconds):
            break
    return warm


def _without_stalls(times: EpochTimes) -> EpochTimes:
    """The account, in which steps do not count for which the whole machine stood still, as a virtual one does that is
    paused: they took far longer than any other, their wait left out.
    """
    stalled = times.work > max(1e9 * STALL_S, STALL * float(np.median(times.work)))
    return replace(times, steady=times.steady & ~stalled)


def _endless(loader: Any, device: torch.device, clock: Clock) -> Iterator[Any]:
    while True:
        yield from ToDevice(loader, device, clock)
