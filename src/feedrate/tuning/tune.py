"""Finds the loader setting that keeps a model fed at the least cost: predicted first, tried where that cannot decide.

What a trial is, is bed.py's affair; what is written about it tuned.py's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Protocol

from feedrate.errors import SampleError, UserError
from feedrate.loader import TRAITS
from feedrate.system.cores import usable_cores
from feedrate.timing import EpochTimes
from feedrate.timing.ceilings import metrics
from feedrate.timing.epoch_times import MIN_STEPS, Setup
from feedrate.timing.noise import FLOOR, Measured, knee, noise, shown, unlike
from feedrate.timing.pipeline import Plan, seconds_per_batch
from feedrate.timing.remedies import costs_of
from feedrate.tuning.trial_runner import Setting

CLOSE = 1.10  # rates that differ by less are measured again, since noise may have decided
TIMES = 5  # measurements of those
PATIENCE = 3  # settings in a row that may bring nothing
WAITS_PCT = 100 * FLOOR  # of the time; where a step waits less without workers, none of them can gain more than noise
FED = 1.02  # times its rate is what the step alone makes: no setting can gain more
MOST_WORKERS = 32
AHEAD = (2, 4, 8)


class Tries(Protocol):
    """A Bed, or what stands in for one."""

    may_be_threads: bool
    pins: bool

    def run(self, setting: Setting, seconds: float, until: float) -> tuple[EpochTimes, Setup]: ...


@dataclass(frozen=True)
class Trial:
    """A setting, tried.

    Attributes:
        predicted: samples per second by the model, 0 where nothing was known.
        samples_per_s, wait_pct: of the steady steps; of several measurements the middle one.
        measured: how often.
        refused: why it cannot be used, empty where it can.
        noise: of samples_per_s, in samples/s; timing/noise.py has the rule.
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
        """Samples per second with their noise."""
        return Measured(self.samples_per_s, self.noise)


@dataclass(frozen=True)
class Tuned:
    """What came of it.

    Attributes:
        best: the cheapest setting that is as good as the best one, within the noise.
        trials: in their order.
        step_samples_per_s: what the step can take.
        seconds: that all took.
        unsteady: that the machine was not the same for all trials, empty where nothing tells so.
    """

    best: Trial
    trials: list[Trial]
    step_samples_per_s: float
    seconds: float
    unsteady: str = ""


def tune(bed: Tries, budget_s: float, trial_s: float, told: Callable[[Trial], None] = lambda trial: None) -> Tuned:
    """Tries the settings that the model of the pipeline cannot tell apart, as long as the budget lasts.

    Args:
        told: takes each trial.

    Raises:
        UserError: a sample or the model fails.
    """
    search = _Search(bed, time.perf_counter(), budget_s, trial_s, told)
    search.begin()
    while (setting := search.following()) is not None and search.attempt(setting):
        pass
    best = search.cheapest()
    ceilings = [rate for rates in search.ceilings.values() for rate in rates]
    step_rate = max(median(ceilings), search.trials[best].samples_per_s)
    return Tuned(search.trials[best], list(search.trials.values()), step_rate, search.spent(), search.unsteady())


@dataclass
class _Search:
    """The state of a search.

    Attributes:
        trials: by setting, in their order.
        step_rate: what the step can take, samples per second, as the first trial found it.
        ceilings: the same as each measurement of a setting found it.
    """

    bed: Tries
    began: float
    budget_s: float
    trial_s: float
    told: Callable[[Trial], None]
    trials: dict[Setting, Trial] = field(default_factory=dict)
    step_rate: float = 0.0
    ceilings: dict[Setting, list[float]] = field(default_factory=dict)
    _rates: dict[Setting, list[tuple[float, float, float]]] = field(default_factory=dict)  # rate, wait %, noise
    _overhead: dict[str, float] = field(default_factory=dict)  # seconds of a trial's start, end and warm-up, by engine
    _predictions: dict[Setting, float] = field(default_factory=dict)  # of all that come into question, once it is known
    _engine: str = "auto"  # that `auto` takes

    def spent(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self.began

    def begin(self) -> None:
        """Without workers nothing disturbs anything: it shows what loading costs, and the step. With one worker it is
        seen which engine `auto` takes, and what taking over a batch costs; where not even one can be had, that is all.
        """
        times, setup = self._measured(Setting(0))
        self._costs, self._cores = costs_of(times, setup), float(usable_cores())
        self._batch = float(times.samples[times.counted].mean())  # the last one of an epoch may be smaller
        self.step_rate = self._batch / max(1e-9, sum(self._costs.step) / len(self._costs.step))
        wanted, one = [Setting(0)], Setting(1, engine="auto")
        try:
            times, setup = self._measured(one)
        except SampleError:
            raise
        except UserError as error:
            self._refused(one, error)
        else:
            self._engine = setup.engine
            self._costs = replace(self._costs, receive=times.receive_ns() / 1e9, way=times.way_ns() / 1e9)
            wanted = self._wanted()
        self._predictions = {setting: self.predicted(setting) for setting in wanted}
        for setting, trial in self.trials.items():
            self.trials[setting] = replace(trial, predicted=self._predictions.get(setting, 0.0))

    def _wanted(self) -> list[Setting]:
        """All that come into question, the cheapest first."""
        load = sum(self._costs.load) / len(self._costs.load)
        most = int(self._cores) + 1 if self._costs.load_cpu > 0.5 * load else MOST_WORKERS
        threads = TRAITS[self._engine].shares_interpreter or self.bed.may_be_threads
        engines = ["thread"] * threads + ["process"]
        found = [Setting(k, ahead, engine) for k in range(1, most + 1) for ahead in AHEAD for engine in engines]
        return [Setting(0), *sorted(found, key=_cost)]

    def predicted(self, setting: Setting) -> float:
        """Samples per second by the model of the pipeline."""
        plan = Plan(setting.num_workers, setting.prefetch_factor, setting.threads)
        return self._batch / seconds_per_batch(self._costs, plan, self._cores)

    def attempt(self, setting: Setting) -> bool:
        """Tries it, or tries it again; False: there is no time left for that."""
        if not self._in_time(setting):
            return False
        try:
            self._measured(setting)
        except SampleError:
            raise
        except UserError as error:
            self._refused(setting, error)
            self._predictions = {s: rate for s, rate in self._predictions.items() if not _asks_more(s, setting)}
        return True

    def _refused(self, setting: Setting, error: UserError) -> None:
        """There is no room for it, or threads cannot load that."""
        text = str(error).partition("\n")[0]
        self.trials[setting] = Trial(setting, self._predictions.get(setting, 0.0), 0.0, 0.0, 0, text)
        self.told(self.trials[setting])

    def following(self) -> Setting | None:
        """What to try next: the cheapest that promises what the best promises, then neighbours of what was best so far,
        then a few that the model thinks little of, then what is so close that noise may have decided; None: nothing is
        open.
        """
        values = {setting: self._value(setting) for setting in self._predictions}
        first = knee({setting: Measured(value) for setting, value in values.items()}, _cost)
        if first not in self.trials:
            return first
        for setting, trial in self.trials.items():  # what falls far short may have met with noise
            if trial.measured == 1 and trial.predicted > CLOSE * max(self._top, trial.samples_per_s):
                return setting
        reached = self.trials[self.cheapest()].samples_per_s
        for setting in self._neighbours(self.cheapest()):
            # the model is trusted as far as to leave out what it calls far worse
            if setting in values and setting not in self.trials and values[setting] * CLOSE >= reached:
                return setting
        if self.bed.pins and (unpinned := replace(self.cheapest(), pin_memory=False)) not in self.trials:
            self._predictions[unpinned] = self.predicted(unpinned)  # alike: the model knows nothing of it
            return unpinned
        rivals = sorted(self._rivals(), key=lambda s: self.trials[s].measured)
        top = next((s for s in rivals if self.trials[s].samples_per_s == self._top), None)
        if top is not None and self.trials[top].measured == 1:  # the best of several noisy ones is too good to be true
            return top
        return self._unlikely() or next(iter(rivals), None)

    def _unlikely(self) -> Setting | None:
        """What promises most of the rest, since the model may be wrong; None where hardly anything can be gained, or
        where the last ones brought nothing.
        """
        best = self.cheapest()
        waits = self.trials[best].wait_pct >= WAITS_PCT or self.trials[best].samples_per_s * CLOSE < self.step_rate
        in_vain = len(self.trials) - 1 - list(self.trials).index(best)
        rest = [setting for setting in self._predictions if setting not in self.trials]
        if not waits or in_vain >= PATIENCE or not rest:
            return None
        return min(rest, key=lambda setting: (-self._value(setting), setting.cost))

    def cheapest(self) -> Setting:
        """The cheapest of those that are as good as the best, within the noise."""
        most = 0 if self._needs_none else MOST_WORKERS
        kept = [trial for trial in self.trials.values() if trial.measured and trial.setting.num_workers <= most]
        return knee({trial.setting: trial.rate for trial in kept}, _cost)

    @property
    def _needs_none(self) -> bool:
        """Whether hardly anything can be gained by workers: without them nothing runs beside the step, so what it waits
        is all that any setting can save. One that is faster by more was measured on a quieter machine.
        """
        return self.trials[Setting(0)].wait_pct < WAITS_PCT

    def unsteady(self) -> str:
        """That the same step took longer in one trial than in another, by more than a tenth; nothing where it did not.

        A loader at work beside a step may make it longer but never shorter than it is without workers.
        """
        alone = self.ceilings[Setting(0)]
        quickest = max(rate for rates in self.ceilings.values() for rate in rates)
        apart = [rates for rates in [*self.ceilings.values(), [max(alone), quickest]] if unlike(rates)]
        if not apart:
            return ""
        rates = [rate for some in apart for rate in some]
        slow, quick = 1e3 * self._batch / max(1e-9, min(rates)), 1e3 * self._batch / max(rates)
        return (
            f"the same step took {shown(quick)} ms in one trial and {shown(slow)} ms in another, so others computed "
            "meanwhile; on a quiet machine the answer may differ"
        )

    @property
    def _top(self) -> float:
        return max(trial.samples_per_s for trial in self.trials.values())

    def _value(self, setting: Setting) -> float:
        """Samples per second as measured; or as predicted, corrected by what came of it for the most similar setting of
        the same engine that was tried.
        """
        if (trial := self.trials.get(setting)) is not None:
            return trial.samples_per_s
        predicted = self._predictions[setting]
        alike = [tried for tried, trial in self.trials.items() if tried.engine == setting.engine and trial.measured]
        if alike:
            like = min(alike, key=lambda tried: _distance(tried, setting))
            predicted *= self.trials[like].samples_per_s / self.trials[like].predicted
        return min(predicted, max(self.step_rate, self._top))

    def _neighbours(self, best: Setting) -> Iterator[Setting]:
        """What may be as good with less; and, where the step still waits, what may be better."""
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
        """The best, the cheapest that is as good, and the best of those that cost less and are close, or second to the
        best: as long as they are measured less than TIMES.
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
        each = self._batch / max(1e-9, self._value(setting))
        first = sum(self._costs.load) / len(self._costs.load) + setting.num_workers * each  # before they are under way
        beside = self._overhead.get(setting.engine, max(self._overhead.values()))
        return self.spent() + beside + first + max(self.trial_s, MIN_STEPS * each) <= self.budget_s

    def _measured(self, setting: Setting) -> tuple[EpochTimes, Setup]:
        begin = time.perf_counter()
        times, setup = self.bed.run(setting, self.trial_s, self.began + self.budget_s)
        beside = time.perf_counter() - begin - float(times.elapsed.sum()) / 1e9
        self._overhead[setup.engine] = max(0.0, beside, self._overhead.get(setup.engine, 0.0))
        kept = replace(setting, engine=setup.engine)
        if len(times.elapsed) < MIN_STEPS and kept in self._predictions:  # the budget has cut it short
            return times, setup
        figures = metrics(times, setup)
        self.ceilings.setdefault(kept, []).append(figures["compute/ceiling_samples_per_s"])
        found = self._rates.setdefault(kept, [])
        rate = figures["loader/samples_per_s"]
        found.append((rate, figures["loader/wait_pct"], rate * figures.get("loader/noise_pct", 0.0) / 100))
        rates, waits, noises = zip(*found, strict=True)
        self.trials[kept] = Trial(
            kept,
            self._predictions.get(kept, 0.0),
            median(rates),
            median(waits),
            len(rates),
            noise=noise(rates, median(noises)),
        )
        self.told(self.trials[kept])
        return times, setup


def _asks_more(one: Setting, other: Setting) -> bool:
    """Whether it needs what the other one needs, and more."""
    larger = one.num_workers >= other.num_workers and one.prefetch_factor >= other.prefetch_factor
    return one.engine == other.engine and larger and one not in (Setting(0), other)


def _cost(setting: Setting) -> tuple[int, bool, int, bool]:
    return setting.cost


def _distance(one: Setting, other: Setting) -> tuple[int, int]:
    return abs(one.num_workers - other.num_workers), abs(one.prefetch_factor - other.prefetch_factor)
