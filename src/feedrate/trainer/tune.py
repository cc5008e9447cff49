"""Finds the loader setting that keeps a model fed at the least cost: predicted first, tried where that cannot decide.

What is written about it is tuned.py's affair.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from feedrate.config import TrainerConfig
from feedrate.dataset import Data
from feedrate.dataset.cores import usable_cores
from feedrate.loader import Loader, ToDevice, build_loaders, close_loaders, setup_of
from feedrate.timing import Clock, EpochTimes
from feedrate.timing.epoch_times import Setup
from feedrate.timing.knee import AS_GOOD, knee
from feedrate.timing.pipeline import Costs, Plan, seconds_per_batch
from feedrate.timing.remedies import costs_of
from feedrate.trainer.assemble import build_model, build_optimizer
from feedrate.trainer.device import choose_precision
from feedrate.trainer.forward import Forward
from feedrate.trainer.task import Task

MOST_WORKERS = 32
FEW_STEPS = 12  # that a trial takes at least, whatever its time


@dataclass(frozen=True, order=True)
class Setting:
    """What is tuned; of two that are as good the lower one is the cheaper."""

    num_workers: int
    prefetch_factor: int = 2
    engine: str = "inline"

    @property
    def overrides(self) -> dict[str, Any]:
        """As keys of the loader."""
        if not self.num_workers:
            return {"num_workers": 0, "engine": "auto", "prefetch_factor": None}
        return {"num_workers": self.num_workers, "engine": self.engine, "prefetch_factor": self.prefetch_factor}

    def __str__(self) -> str:
        if not self.num_workers:
            return "no workers"
        kind = "thread" if self.engine == "thread" else "process"
        plural = "es" if kind == "process" and self.num_workers > 1 else "s" if self.num_workers > 1 else ""
        return f"{self.num_workers} {kind}{plural}, {self.prefetch_factor} batches ahead each"


@dataclass(frozen=True)
class Trial:
    """A setting, tried.

    Attributes:
        predicted: samples per second by the model, 0 where nothing was known.
        samples_per_s, wait_pct: of the steady steps.
    """

    setting: Setting
    predicted: float
    samples_per_s: float
    wait_pct: float


@dataclass(frozen=True)
class Tuned:
    """What came of it.

    Attributes:
        best: the cheapest setting that is as good as the best one.
        trials: in their order.
        step_samples_per_s: what the step can take.
        seconds: that all took.
    """

    best: Trial
    trials: list[Trial]
    step_samples_per_s: float
    seconds: float


class Bed:
    """A model that trains on what a loader gives; its weights are nobody's.

    Args:
        node: conf/loader; what a setting does not name is taken from it.
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
        self._data, self._node, self._seed, self.device = data, node, seed, device
        precision = choose_precision(config.precision, device)
        self._model = build_model(model, data, device)
        self._optimizer = build_optimizer(optimizer, self._model, device)
        self._forward = Forward(self._model, data, [], device, precision, config.compile)
        self._task = Task(data.targets, config.label_smoothing, top5=False)
        self._model.train()

    def run(self, setting: Setting, seconds: float) -> tuple[EpochTimes, Setup]:
        """The account of so many seconds of training with a loader of that setting.

        Raises:
            UserError: there is no room for it, or a sample or the model fails.
        """
        loaders = build_loaders({**self._node, **setting.overrides}, self._data, self._seed, self.device)
        loader = loaders["train"]
        assert isinstance(loader, Loader)
        setup = setup_of(loader)
        warmup = 2 * setup.workers * setup.prefetch + 3
        clock = Clock(self.device, warmup)
        try:
            begin = time.perf_counter()
            for number, batch in enumerate(_endless(loader, self.device, clock)):
                loss = self._task.loss(self._forward(batch.X), batch.y)
                loss.backward()
                self._optimizer.step()
                self._optimizer.zero_grad(set_to_none=True)
                clock.lap("compute")
                clock.step(len(batch.X), batch.nbytes, batch.receipt.load if batch.receipt else None)
                if number == warmup:
                    begin = time.perf_counter()
                if number >= warmup + FEW_STEPS and time.perf_counter() - begin >= seconds:
                    break
            return clock.epoch(), replace(setup, engine=loader.engine)
        finally:
            close_loaders(loaders, at_once=True)


def tune(bed: Bed, budget_s: float, trial_s: float, told: Callable[[Trial], None] = lambda trial: None) -> Tuned:
    """Tries the settings that the model of the pipeline cannot tell apart, as long as the budget lasts.

    Args:
        told: takes each trial.
    """
    begin = time.perf_counter()
    trials: dict[Setting, Trial] = {}

    def attempt(setting: Setting, predicted: float) -> tuple[EpochTimes, Setup]:
        times, setup = bed.run(setting, trial_s)
        figures = times.metrics(setup)
        kept = replace(setting, engine=setup.engine)
        rate, wait = figures["loader/samples_per_s"], figures["loader/wait_pct"]
        if (earlier := trials.get(kept)) is not None:  # tried again: the middle of two noisy ones
            rate, wait = (rate + earlier.samples_per_s) / 2, (wait + earlier.wait_pct) / 2
        trials[kept] = Trial(kept, predicted, rate, wait)
        told(trials[kept])
        return times, setup

    def left() -> bool:
        return time.perf_counter() - begin + 2 * trial_s < budget_s

    # without workers nothing disturbs anything: what loading costs, and the step
    times, setup = attempt(Setting(0), 0.0)
    costs, batch = costs_of(times, setup), setup.batch_size
    cores = float(usable_cores())
    step_rate = batch / max(1e-9, sum(costs.step) / len(costs.step))

    # one worker: which engine `auto` takes, and what taking over a batch costs
    one_times, one = attempt(Setting(1, engine="auto"), batch / seconds_per_batch(costs, Plan(1), cores))
    engine = one.engine
    costs = replace(costs, receive=one_times.receive_ns() / 1e9)
    threads = engine == "thread"

    def predicted(setting: Setting) -> float:
        plan = Plan(setting.num_workers, setting.prefetch_factor, threads)
        return batch / seconds_per_batch(costs, plan, cores)

    wanted = [Setting(0), *(Setting(k, 2, engine) for k in range(1, _most(costs, cores) + 1))]
    wanted += [Setting(k, p, engine) for k in range(1, _most(costs, cores) + 1) for p in (4, 8)]
    while left():
        following = _following(wanted, trials, predicted)
        if following is None:
            break
        attempt(following, predicted(following))
    best = _cheapest(trials)
    for rival in _rivals(trials, best):  # noise must not decide between neighbours
        if not left():
            break
        attempt(rival, trials[rival].predicted)
    best = _cheapest(trials)
    return Tuned(trials[best], list(trials.values()), step_rate, time.perf_counter() - begin)


def _most(costs: Costs, cores: float) -> int:
    """Workers that come into question: as many as there are cores where loading is computing, more where it waits."""
    load = sum(costs.load) / len(costs.load)
    return int(cores) if costs.load_cpu > 0.5 * load else MOST_WORKERS


def _following(
    wanted: list[Setting], trials: Mapping[Setting, Trial], predicted: Callable[[Setting], float]
) -> Setting | None:
    """What to try next: the cheapest that promises what the best promises, then neighbours of what was best so far."""
    promise = max(predicted(setting) for setting in wanted)
    first = min(setting for setting in wanted if predicted(setting) * AS_GOOD >= promise)
    if first not in trials:
        return first
    best = _cheapest(trials)
    reached = trials[best].samples_per_s
    around = [
        replace(best, num_workers=best.num_workers - 1),
        replace(best, num_workers=best.num_workers + 1),
        replace(best, prefetch_factor=best.prefetch_factor * 2),
    ]
    if best.num_workers == 1:
        around[0] = Setting(0)
    if best.num_workers == 0:
        around = [setting for setting in wanted if setting.num_workers == 1 and setting.prefetch_factor == 2]
    for setting in around:
        # the model is trusted as far as to leave out what it calls far worse
        if setting in wanted and setting not in trials and predicted(setting) * 1.15 >= reached:
            return setting
    return None


def _cheapest(trials: Mapping[Setting, Trial]) -> Setting:
    """The cheapest of those that are as good as the best."""
    return knee({setting: trial.samples_per_s for setting, trial in trials.items()})


def _rivals(trials: Mapping[Setting, Trial], best: Setting) -> list[Setting]:
    """The best one, and the fastest cheaper one that is close behind it."""
    top = max(trial.samples_per_s for trial in trials.values())
    close = [s for s, trial in trials.items() if s < best and trial.samples_per_s * 1.1 >= top]
    return [best, *sorted(close, key=lambda s: -trials[s].samples_per_s)[:1]] if close else []


def _endless(loader: Loader, device: torch.device, clock: Clock) -> Iterator[Any]:
    while True:
        yield from ToDevice(loader, device, clock)
