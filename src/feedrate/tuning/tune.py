"""Finds the cheapest loader setting that keeps a model fed: predicted by the pipeline model, then tried."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
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

CLOSE = 1.10  # rates within this factor are measured again
TIMES = 5  # measurements of those
PATIENCE = 3  # settings in a row that bring nothing before the search ends
WAITS_PCT = 100 * FLOOR  # a step that waits less without workers gains nothing from any setting
FED = 1.02  # within this factor of the step's own rate no setting can gain more
MOST_WORKERS = 32
AHEAD = (2, 4, 8)  # prefetch factors


@dataclass(frozen=True)
class Trial:
    """A setting that was tried.

    Attributes:
        predicted: samples per second by the model, 0 if nothing was known.
        samples_per_s, wait_pct: of the steady steps; medians over the measurements.
        measured: number of measurements.
        refused: why it cannot be used, empty if it can.
        noise: of samples_per_s, in samples/s.
    """

    setting: Setting
    predicted: float
    samples_per_s: float
    wait_pct: float
    measured: int = 1
    refused: str = ""
    noise: float = 0.0

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
    """The result of a search.

    Attributes:
        best: the cheapest setting as good as the best, within the noise.
        trials: in the order in which they were first tried.
        step_samples_per_s: ceiling of the step.
        seconds: spent on all trials.
        unsteady: how the machine differed between trials, empty if it did not.
    """

    best: Trial
    trials: list[Trial]
    step_samples_per_s: float
    seconds: float
    unsteady: str = ""

    def __str__(self) -> str:
        return f"{self.best.setting}: {self.best.rate} samples/s, waited {self.best.wait_pct:.1f} %"


def tune(
    runner: TrialRunner, budget_s: float, trial_s: float, on_trial: Callable[[Trial], object] = lambda trial: None
) -> Tuned:
    """Tries settings until none is promising or the budget is spent.

    Args:
        on_trial: called after each trial.

    Raises:
        UserError: a sample or the model fails.
    """
    search = _Search(runner, time.perf_counter(), budget_s, trial_s, on_trial)
    search.begin()
    while (setting := search.following()) is not None and search.attempt(setting):
        pass
    best = search.trials[search.cheapest()]
    ceilings = [rate for rates in search.ceilings.values() for rate in rates]
    step_rate = max(median(ceilings), best.samples_per_s)
    return Tuned(best, list(search.trials.values()), step_rate, search.spent(), search.unsteady())


@dataclass
class _Search:
    """The state of a search.

    Attributes:
        trials: by setting, in their order.
        step_rate: samples per second that the step can take, by the first trial.
        ceilings: the same by each measurement of a setting.
    """

    runner: TrialRunner
    began: float
    budget_s: float
    trial_s: float
    on_trial: Callable[[Trial], object]
    trials: dict[Setting, Trial] = field(default_factory=dict)
    step_rate: float = 0.0
    ceilings: dict[Setting, list[float]] = field(default_factory=dict)
    _measurements: dict[Setting, list[tuple[float, float, float]]] = field(default_factory=dict)  # rate, wait %, noise
    _overhead: dict[str, float] = field(default_factory=dict)  # seconds of a trial beside its steady steps, by engine
    _predictions: dict[Setting, float] = field(default_factory=dict)  # candidates
    _engine: str = "auto"  # that `auto` chooses

    def spent(self) -> float:
        return time.perf_counter() - self.began

    def begin(self) -> None:
        """Measures loading and step without workers, then the engine that `auto` chooses and the hand-over with one."""
        times, setup = self._measure(Setting(0))
        self._costs, self._cores = costs_of(times, setup), float(usable_cores())
        self._batch = float(times.samples[times.counted].mean())  # the last one of an epoch may be smaller
        self.step_rate = self._batch / max(1e-9, sum(self._costs.step) / len(self._costs.step))
        candidates, one = [Setting(0)], Setting(1, engine="auto")
        try:
            times, setup = self._measure(one)
        except SampleError:
            raise
        except UserError as error:  # no room for a single worker
            self._refuse(one, error)
        else:
            self._engine = setup.engine
            self._costs = replace(self._costs, receive=times.receive_ns() / 1e9, way=times.way_ns() / 1e9)
            candidates = self._candidates()
        self._predictions = {setting: self._predicted(setting) for setting in candidates}
        for setting, trial in self.trials.items():
            self.trials[setting] = replace(trial, predicted=self._predictions.get(setting, 0.0))

    def _candidates(self) -> list[Setting]:
        load = sum(self._costs.load) / len(self._costs.load)
        most = int(self._cores) + 1 if self._costs.load_cpu > 0.5 * load else MOST_WORKERS
        threads = TRAITS[self._engine].shares_interpreter or self.runner.may_be_threads
        engines = ["thread"] * threads + ["process"]
        found = [Setting(k, ahead, engine) for k in range(1, most + 1) for ahead in AHEAD for engine in engines]
        return [Setting(0), *sorted(found, key=_cost)]

    def _predicted(self, setting: Setting) -> float:
        """Samples per second by the pipeline model."""
        workers, prefetch, threads = setting.num_workers, setting.prefetch_factor, setting.threads
        return self._batch / seconds_per_batch(self._costs, workers, self._cores, prefetch, threads)

    def attempt(self, setting: Setting) -> bool:
        """Measures it, once more if it was tried before; False if there is no time left for that."""
        if not self._in_time(setting):
            return False
        try:
            self._measure(setting)
        except SampleError:
            raise
        except UserError as error:
            self._refuse(setting, error)
            self._predictions = {s: rate for s, rate in self._predictions.items() if not _needs_more(s, setting)}
        return True

    def _refuse(self, setting: Setting, error: UserError) -> None:
        """It does not fit in memory, or threads cannot load the dataset."""
        reason = str(error).partition("\n")[0]
        self.trials[setting] = Trial(setting, self._predictions.get(setting, 0.0), 0.0, 0.0, 0, reason)
        self.on_trial(self.trials[setting])

    def following(self) -> Setting | None:
        """What to try next; None if nothing is open.

        In this order: the cheapest that promises what the best promises, neighbours of the best so far, a few that the
        model thinks less of, and again those so close that noise may have decided.
        """
        values = {setting: self._value(setting) for setting in self._predictions}
        first = knee({setting: Measured(value) for setting, value in values.items()}, _cost)
        if first not in self.trials:
            return first
        for setting, trial in self.trials.items():  # far below its prediction: perhaps noise
            if trial.measured == 1 and trial.predicted > CLOSE * max(self._top, trial.samples_per_s):
                return setting
        reached = self.trials[self.cheapest()].samples_per_s
        for setting in self._neighbours(self.cheapest()):
            # the model is trusted to leave out what it calls far worse
            if setting in values and setting not in self.trials and values[setting] * CLOSE >= reached:
                return setting
        if self.runner.pins and (unpinned := replace(self.cheapest(), pin_memory=False)) not in self.trials:
            self._predictions[unpinned] = self._predicted(unpinned)  # the model does not know of pinning
            return unpinned
        rivals = sorted(self._rivals(), key=lambda s: self.trials[s].measured)
        top = next((s for s in rivals if self.trials[s].samples_per_s == self._top), None)
        if top is not None and self.trials[top].measured == 1:  # the best of several noisy ones is too good to be true
            return top
        return self._unlikely() or next(iter(rivals), None)

    def _unlikely(self) -> Setting | None:
        """The most promising of the rest; None if little can be gained, or the last ones brought nothing."""
        best = self.cheapest()
        waits = self.trials[best].wait_pct >= WAITS_PCT or self.trials[best].samples_per_s * CLOSE < self.step_rate
        in_vain = len(self.trials) - 1 - list(self.trials).index(best)
        rest = [setting for setting in self._predictions if setting not in self.trials]
        if not waits or in_vain >= PATIENCE or not rest:
            return None
        return min(rest, key=lambda setting: (-self._value(setting), setting.cost))

    def cheapest(self) -> Setting:
        """The cheapest setting as good as the best, within the noise."""
        most = 0 if self._needs_none else MOST_WORKERS
        kept = [trial for trial in self.trials.values() if trial.measured and trial.setting.num_workers <= most]
        return knee({trial.setting: trial.rate for trial in kept}, _cost)

    @property
    def _needs_none(self) -> bool:
        """Whether the step hardly waits without workers: a trial that is faster by more met a quieter machine."""
        return self.trials[Setting(0)].wait_pct < WAITS_PCT

    def unsteady(self) -> str:
        """How the step's own time differed between trials, by more than a tenth; empty if it did not.

        Loading beside a step can make it longer, but not shorter than it is without workers.
        """
        alone = self.ceilings[Setting(0)]
        quickest = max(rate for rates in self.ceilings.values() for rate in rates)
        apart = [rates for rates in [*self.ceilings.values(), [max(alone), quickest]] if unlike(rates)]
        if not apart:
            return ""
        rates = [rate for some in apart for rate in some]
        slow, quick = 1e3 * self._batch / max(1e-9, min(rates)), 1e3 * self._batch / max(rates)
        return (
            f"the same step took {shown(quick)} ms in one trial and {shown(slow)} ms in another, so other programs "
            "were running; tune again on a quiet machine"
        )

    @property
    def _top(self) -> float:
        return max(trial.samples_per_s for trial in self.trials.values())

    def _value(self, setting: Setting) -> float:
        """Samples per second, measured, or predicted and corrected by the most similar trial of the same engine."""
        if (trial := self.trials.get(setting)) is not None:
            return trial.samples_per_s
        predicted = self._predictions[setting]
        alike = [tried for tried, trial in self.trials.items() if tried.engine == setting.engine and trial.measured]
        if alike:
            like = min(alike, key=lambda tried: _distance(tried, setting))
            predicted *= self.trials[like].samples_per_s / self.trials[like].predicted
        return min(predicted, max(self.step_rate, self._top))

    def _neighbours(self, best: Setting) -> Iterator[Setting]:
        """One worker less; where the step still waits, also one more, a longer queue, and the other engine."""
        fewer = best.num_workers - 1
        yield replace(best, num_workers=fewer) if fewer > 0 else Setting(0)
        if self.trials[best].samples_per_s * FED >= self.step_rate:
            return
        if not best.num_workers:
            best = Setting(0, engine=self._engine)
        yield replace(best, num_workers=best.num_workers + 1)
        if best.num_workers:
            yield replace(best, prefetch_factor=best.prefetch_factor * 2)
            yield replace(best, engine="process" if best.threads else "thread")

    def _rivals(self) -> Iterator[Setting]:
        """Settings to measure again, at most TIMES: the cheapest, the fastest, and the fastest of those that cost less
        and are close.
        """
        ranked = sorted(self.trials, key=lambda s: -self.trials[s].samples_per_s)
        close = [s for i, s in enumerate(ranked) if i < 2 or self.trials[s].samples_per_s * CLOSE >= self._top]
        cheapest = self.cheapest()
        if self._needs_none:
            return
        less = [setting for setting in close if setting.cost < cheapest.cost]
        fastest = {max(some, key=lambda s: self.trials[s].samples_per_s) for some in (close, less) if some}
        for setting in sorted({cheapest, *fastest}, key=_cost):
            if 0 < self.trials[setting].measured < TIMES:
                yield setting

    def _in_time(self, setting: Setting) -> bool:
        step_s = self._batch / max(1e-9, self._value(setting))
        start_s = sum(self._costs.load) / len(self._costs.load) + setting.num_workers * step_s
        overhead_s = self._overhead.get(setting.engine, max(self._overhead.values()))
        return self.spent() + overhead_s + start_s + max(self.trial_s, MIN_STEPS * step_s) <= self.budget_s

    def _measure(self, setting: Setting) -> tuple[EpochTimes, Setup]:
        begin = time.perf_counter()
        times, setup = self.runner.run(setting, self.trial_s, self.began + self.budget_s)
        overhead = time.perf_counter() - begin - float(times.elapsed.sum()) / 1e9
        self._overhead[setup.engine] = max(0.0, overhead, self._overhead.get(setup.engine, 0.0))
        kept = replace(setting, engine=setup.engine)
        if len(times.elapsed) < MIN_STEPS and kept in self._predictions:  # the budget has cut it short
            return times, setup
        figures = metrics(times, setup)
        self.ceilings.setdefault(kept, []).append(figures["compute/ceiling_samples_per_s"])
        rate, found = figures["loader/samples_per_s"], self._measurements.setdefault(kept, [])
        found.append((rate, figures["loader/wait_pct"], rate * figures.get("loader/noise_pct", 0.0) / 100))
        rates, waits, noises = zip(*found, strict=True)
        predicted, of_all = self._predictions.get(kept, 0.0), noise(rates, median(noises))
        self.trials[kept] = Trial(kept, predicted, median(rates), median(waits), len(rates), noise=of_all)
        self.on_trial(self.trials[kept])
        return times, setup


def _needs_more(one: Setting, other: Setting) -> bool:
    """Whether it needs at least what another setting needs, in the same engine."""
    larger = one.num_workers >= other.num_workers and one.prefetch_factor >= other.prefetch_factor
    return one.engine == other.engine and larger and one not in (Setting(0), other)


def _cost(setting: Setting) -> tuple[int, bool, int, bool]:
    return setting.cost


def _distance(one: Setting, other: Setting) -> tuple[int, int]:
    return abs(one.num_workers - other.num_workers), abs(one.prefetch_factor - other.prefetch_factor)
