"""Finds the cheapest loader setting that keeps a model fed: predicted by the pipeline model, then tried."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from operator import attrgetter
from statistics import median

from feedrate.errors import SampleError, UserError
from feedrate.loader import TRAITS
from feedrate.system.cores import usable_cores
from feedrate.timing import EpochTimes
from feedrate.timing.ceilings import metrics
from feedrate.timing.epoch_times import MIN_STEPS, Setup
from feedrate.timing.noise import FLOOR, Measured, knee, noise, shown, unlike
from feedrate.timing.pipeline import seconds_per_batch
from feedrate.timing.remedies import costs_of
from feedrate.tuning.trial_runner import Setting, TrialRunner

CLOSE = 1.20  # rates within this factor are measured again
TIMES = 5  # measurements of those
WAITS_PCT = 100 * FLOOR  # a step that waits less without workers gains nothing from any setting
FED = 1.02  # within this factor of the step's own rate no setting can gain more
MOST_WORKERS = 32
PREFETCH = (2, 4, 8)  # prefetch factors
_cost = attrgetter("cost")


@dataclass(frozen=True)
class Tried:
    """A setting that was tried, with medians over its measurements."""

    setting: Setting
    predicted: float  # samples per second by the model, 0 if nothing was known
    samples_per_s: float = 0.0  # of the steady steps
    wait_pct: float = 0.0
    measured: int = 0  # number of measurements
    refused: str = ""  # why it cannot be used, empty if it can
    noise: float = 0.0  # of samples_per_s

    @property
    def rate(self) -> Measured:
        return Measured(self.samples_per_s, self.noise)

    def __str__(self) -> str:
        if self.refused:
            return f"{self.setting}: {self.refused}"
        predicted = f" (predicted {self.predicted:,.0f})" if self.predicted else ""
        times = f", {self.measured} times" if self.measured > 1 else ""
        return f"{self.setting}: {self.rate} samples/s{predicted}, waited {self.wait_pct:.1f} %{times}"


@dataclass(frozen=True)
class Tuned:
    """What tuning has found."""

    best: Tried  # the cheapest setting as good as the best, within the noise
    tried: list[Tried]  # in the order in which they were first tried
    step_samples_per_s: float  # ceiling of the step
    seconds: float  # spent on all trials
    unsteady: str  # how the machine differed between trials, empty if it did not

    def __str__(self) -> str:
        return f"{self.best.setting}: {self.best.rate} samples/s, waited {self.best.wait_pct:.1f} %"


def tune(
    runner: TrialRunner, budget_s: float, trial_s: float, on_trial: Callable[[Tried], object] = lambda tried: None
) -> Tuned:
    """Tries settings until none is promising or the budget is spent; `on_trial` is called after each trial.

    Raises:
        UserError: a sample or the model fails.
    """
    return _Tuning(runner, budget_s, trial_s, on_trial).run()


class _Tuning:
    """The settings tried so far, and which one follows."""

    def __init__(
        self, runner: TrialRunner, budget_s: float, trial_s: float, on_trial: Callable[[Tried], object]
    ) -> None:
        self._runner, self._trial_s, self._on_trial = runner, trial_s, on_trial
        self._began = time.perf_counter()
        self._until = self._began + budget_s
        self._tried: dict[Setting, Tried] = {}
        self._measurements: dict[Setting, list[tuple[float, float, float]]] = {}  # rate, wait %, noise
        self._ceilings: dict[Setting, list[float]] = {}  # samples/s of the step, by measurement
        self._predictions: dict[Setting, float] = {}  # of all candidates
        self._overhead_s = 0.0  # the longest of a trial beside its steady steps

    def run(self) -> Tuned:
        self._begin()
        while (setting := self._following()) is not None and self._in_time(setting):
            self._try(setting)
        best = self._tried[self._cheapest()]
        step_rate = max(median(rate for rates in self._ceilings.values() for rate in rates), best.samples_per_s)
        seconds = time.perf_counter() - self._began
        return Tuned(best, list(self._tried.values()), step_rate, seconds, self._unsteady())

    def _begin(self) -> None:
        """Measures loading and step without workers, then the engine that `auto` chooses and the hand-over with one."""
        times, setup = self._measure(Setting(0))
        self._costs, self._cores = costs_of(times, setup), float(usable_cores())
        self._batch = float(times.samples[times.counted].mean())  # the last one of an epoch may be smaller
        self._step_rate = self._batch / max(1e-9, sum(self._costs.step) / len(self._costs.step))
        candidates, self._engine = [Setting(0)], "auto"
        if (found := self._try(Setting(1, engine="auto"))) is not None:
            times, setup = found
            self._engine = setup.engine
            self._costs = replace(self._costs, receive=times.receive_ns() / 1e9)
            candidates = self._candidates()
        self._predictions = {setting: self._predicted(setting) for setting in candidates}
        for setting, tried in self._tried.items():
            self._tried[setting] = replace(tried, predicted=self._predictions.get(setting, 0.0))

    def _candidates(self) -> list[Setting]:
        load = sum(self._costs.load) / len(self._costs.load)
        most = int(self._cores) + 1 if self._costs.load_cpu > 0.5 * load else MOST_WORKERS
        threads = TRAITS[self._engine].shares_interpreter or self._runner.may_be_threads
        engines = ["thread"] * threads + ["process"]
        found = [Setting(k, ahead, engine) for k in range(1, most + 1) for ahead in PREFETCH for engine in engines]
        return [Setting(0), *found]

    def _predicted(self, setting: Setting) -> float:
        """Samples per second by the pipeline model."""
        workers, prefetch, threads = setting.num_workers, setting.prefetch_factor, setting.threads
        return self._batch / seconds_per_batch(self._costs, workers, self._cores, prefetch, threads)

    def _following(self) -> Setting | None:
        """What to try next: the cheapest that promises what the best promises, neighbours of the best so far, and again
        those so close that noise may have decided; None if nothing is open.
        """
        values = {setting: self._value(setting) for setting in self._predictions}
        first = knee({setting: Measured(value) for setting, value in values.items()}, _cost)
        if first not in self._tried:
            return first
        best = self._cheapest()
        for setting in self._neighbours(best):
            # the model is trusted to leave out what it calls far worse
            worth = values.get(setting, 0.0) * CLOSE >= self._tried[best].samples_per_s
            if worth and setting not in self._tried:
                return setting
        return min(self._rivals(best), key=lambda setting: self._tried[setting].measured, default=None)

    def _neighbours(self, best: Setting) -> Iterator[Setting]:
        """One worker less; where the step still waits, also one more, a longer queue, and the other engine."""
        fewer = best.num_workers - 1
        yield replace(best, num_workers=fewer) if fewer > 0 else Setting(0)
        if self._tried[best].samples_per_s * FED >= self._step_rate:
            return
        if not best.num_workers:
            yield Setting(1, engine=self._engine)
            return
        yield replace(best, num_workers=best.num_workers + 1)
        yield replace(best, prefetch_factor=best.prefetch_factor * 2)
        yield replace(best, engine="process" if best.threads else "thread")

    def _rivals(self, best: Setting) -> list[Setting]:
        """To be measured again, at most TIMES: the best, the fastest, and the fastest of the cheaper ones, if close."""
        if self._needs_none:
            return []
        close = [setting for setting, tried in self._tried.items() if tried.samples_per_s * CLOSE >= self._top]
        cheaper = [setting for setting in close if setting.cost < best.cost]
        fastest = {max(some, key=lambda s: self._tried[s].samples_per_s) for some in (close, cheaper) if some}
        return [s for s in sorted({best, *fastest}, key=_cost) if self._tried[s].measured < TIMES]

    def _cheapest(self) -> Setting:
        """The cheapest setting as good as the best, within the noise."""
        measured = {setting: tried.rate for setting, tried in self._tried.items() if tried.measured}
        return Setting(0) if self._needs_none else knee(measured, _cost)

    @property
    def _needs_none(self) -> bool:
        """Whether the step hardly waits without workers; a trial that is faster had a quieter machine."""
        return self._tried[Setting(0)].wait_pct < WAITS_PCT

    @property
    def _top(self) -> float:
        return max(tried.samples_per_s for tried in self._tried.values())

    def _value(self, setting: Setting) -> float:
        """Samples per second, measured, or predicted and corrected by the most similar trial of the same engine."""
        if (tried := self._tried.get(setting)) is not None:
            return tried.samples_per_s
        predicted = self._predictions[setting]
        similar = [tried for tried in self._tried.values() if tried.setting.engine == setting.engine and tried.measured]
        if similar:
            nearest = min(similar, key=lambda tried: setting.distance(tried.setting))
            predicted *= nearest.samples_per_s / nearest.predicted
        return min(predicted, max(self._step_rate, self._top))

    def _in_time(self, setting: Setting) -> bool:
        step_s = self._batch / max(1e-9, self._value(setting))
        needed_s = self._overhead_s + setting.num_workers * step_s + max(self._trial_s, MIN_STEPS * step_s)
        return time.perf_counter() + needed_s <= self._until

    def _try(self, setting: Setting) -> tuple[EpochTimes, Setup] | None:
        """Measures a setting; None where it does not fit in memory, or threads cannot load the dataset."""
        try:
            return self._measure(setting)
        except SampleError:
            raise
        except UserError as error:
            reason = str(error).partition("\n")[0]
            self._tried[setting] = Tried(setting, self._predictions.get(setting, 0.0), refused=reason)
            self._on_trial(self._tried[setting])
            self._predictions = {s: rate for s, rate in self._predictions.items() if not _needs_more(s, setting)}
            return None

    def _measure(self, setting: Setting) -> tuple[EpochTimes, Setup]:
        begin = time.perf_counter()
        times, setup = self._runner.run(setting, self._trial_s, self._until)
        self._overhead_s = max(self._overhead_s, time.perf_counter() - begin - float(times.elapsed.sum()) / 1e9)
        setting = replace(setting, engine=setup.engine)
        if len(times.elapsed) < MIN_STEPS and setting in self._predictions:  # the budget has cut it short
            return times, setup
        figures = metrics(times, setup)
        self._ceilings.setdefault(setting, []).append(figures["compute/ceiling_samples_per_s"])
        rate, found = figures["loader/samples_per_s"], self._measurements.setdefault(setting, [])
        found.append((rate, figures["loader/wait_pct"], rate * figures.get("loader/noise_pct", 0.0) / 100))
        rates, waits, noises = zip(*found, strict=True)
        predicted, of_all = self._predictions.get(setting, 0.0), noise(rates, median(noises))
        self._tried[setting] = Tried(setting, predicted, median(rates), median(waits), len(rates), noise=of_all)
        self._on_trial(self._tried[setting])
        return times, setup

    def _unsteady(self) -> str:
        """How the step's own time differed between trials, by more than a tenth; empty if it did not.

        Loading beside a step can make it longer, but not shorter than it is without workers.
        """
        alone = self._ceilings[Setting(0)]
        quickest = max(rate for rates in self._ceilings.values() for rate in rates)
        apart = [rates for rates in [*self._ceilings.values(), [max(alone), quickest]] if unlike(rates)]
        if not apart:
            return ""
        rates = [rate for some in apart for rate in some]
        slow, quick = 1e3 * self._batch / max(1e-9, min(rates)), 1e3 * self._batch / max(rates)
        return (
            f"the same step took {shown(quick)} ms in one trial and {shown(slow)} ms in another, so other programs "
            "were running; tune again on a quiet machine"
        )


def _needs_more(one: Setting, other: Setting) -> bool:
    """Whether it needs at least what another setting needs, in the same engine."""
    larger = one.num_workers >= other.num_workers and one.prefetch_factor >= other.prefetch_factor
    return one.engine == other.engine and larger and one.num_workers > 0
