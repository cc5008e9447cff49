"""Results of a sweep's jobs from their summary.json, groups over seeds and folds, and how they rank.

Settings whose figures differ by no more than the noise (timing/noise.py) share a rank.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from feedrate.system.text import number, percent
from feedrate.timing.ceilings import HELD_UP_PCT
from feedrate.timing.noise import FLOOR, Measured, noise, ranks, rounded, unlike

WORKERS, BATCH_SIZE = "loader.num_workers", "loader.batch_size"
ENGINE, PREFETCH = "loader.engine", "loader.prefetch_factor"
REPEATS = ("seed", "fold")  # last part of keys that are swept for mean and spread
METRICS = {"validation/accuracy": True, "validation/mae": False, "validation/loss": False}
"""The result of a run is the first of these that it has; and whether more is better."""
_EXACT = ("best", "best_epoch", "objective")  # the same whenever a job is repeated
_MANY = 1e9  # workers, where their number is not known


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """One job. Rates, shares and step times are medians over the epochs, without the first where there are more."""

    number: int  # from 0
    settings: Mapping[str, str]  # swept key -> value as text
    command: str  # repeats this job alone; without secrets
    status: str  # FINISHED, PRUNED, FAILED, KILLED, or NOT RUN
    error: str = ""
    samples_per_s: float | None = None
    wait_pct: float | None = None  # time waited for data
    held_pct: float = 0.0  # by how much the loader's work slowed the steps down; 0 where little
    step_ms: float | None = None  # compute step
    free_cores: float | None = None  # cores that the job could use
    best: float | None = None  # `metric` of the epoch with the lowest validation loss
    best_epoch: int | None = None  # from 1
    metric: str = ""  # such as validation/accuracy
    value: float | None = None  # lowest validation loss
    objective: float | None = None  # the metric of a search
    noise: Mapping[str, float] = field(default_factory=dict)  # of some figures, in their unit
    run_id: str | None = None  # in MLflow

    @property
    def fed_pct(self) -> float | None:
        """Share of the time in which the loader neither kept the step waiting nor slowed it down."""
        return None if self.wait_pct is None else max(0.0, 100.0 - self.wait_pct - self.held_pct)


@dataclass(frozen=True)
class Group:
    """Jobs that differ only in seed and fold; a single job where neither is swept."""

    settings: Mapping[str, str]
    results: Sequence[JobResult]  # finished ones first

    @property
    def statuses(self) -> Counter[str]:
        """How many jobs have each status."""
        return Counter(result.status for result in self.results)

    def values(self, name: str) -> list[float]:
        """Finite values of one figure, such as `samples_per_s`; of jobs with equal settings a metric counts once."""
        results: Iterable[JobResult] = self.results
        if name in _EXACT:
            results = {tuple(sorted(result.settings.items())): result for result in reversed(self.results)}.values()
        found = (getattr(result, name) for result in results)
        return [value for value in found if value is not None and math.isfinite(value)]

    def mean(self, name: str) -> float | None:
        """Mean of a figure over the jobs that have it."""
        values = self.values(name)
        return statistics.fmean(values) if values else None

    def spread(self, name: str) -> float | None:
        """Standard deviation of a figure, for at least two jobs."""
        values = self.values(name)
        return statistics.stdev(values) if len(values) > 1 else None

    def measured(self, name: str) -> Measured | None:
        """Mean of a figure with its noise; the noise of a metric is the scatter over its repeats alone."""
        mean = self.mean(name)
        if mean is None:
            return None
        within = max((result.noise.get(name, 0.0) for result in self.results), default=0.0)
        return Measured(mean, noise(self.values(name), within), 0.0 if name in _EXACT else FLOOR)

    def shown(self, name: str) -> str:
        """A figure with as many digits as its noise leaves; over several jobs with its standard deviation."""
        measured, spread = self.measured(name), self.spread(name)
        if measured is None:
            return ""
        text = str(measured)
        if name.endswith("_pct") or name == "free_cores":
            text = percent(measured.value)
        elif name in _EXACT:
            text = rounded(measured.value, spread / 20) if spread else number(measured.value)
        return text if spread is None else f"{text} ± {rounded(spread, spread / 20)}"


def figures(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A finished run's figures, as `JobResult` names them."""
    best = summary.get("best") or {}
    metric = next((name for name in METRICS if name in best), "")
    rate, wait = steady(summary, "loader/samples_per_s"), steady(summary, "loader/wait_pct")
    ceiling = steady(summary, "compute/ceiling_samples_per_s")
    noises = {"fed_pct": noise(per_epoch(summary, "loader/wait_pct"))}
    if rate:
        within = (steady(summary, "loader/noise_pct") or 0.0) * rate / 100
        noises["samples_per_s"] = noise(per_epoch(summary, "loader/samples_per_s"), within)
    held = 100 * (1 - rate / ceiling) - wait if rate is not None and wait is not None and ceiling else 0.0
    return {
        "samples_per_s": rate,
        "wait_pct": wait,
        "held_pct": held if held > HELD_UP_PCT else 0.0,
        "step_ms": steady(summary, "compute/step_ms_p50"),
        "free_cores": steady(summary, "compute/free_cores"),
        "best": best.get(metric),
        "best_epoch": summary.get("best_epoch"),
        "metric": metric,
        "value": best.get("validation/loss"),
        "noise": noises,
        "run_id": summary.get("run_id"),
    }


def per_epoch(summary: Mapping[str, Any], metric: str) -> list[float]:
    """Finite values of a metric in a run's epochs, without the first where there are more: it is cold."""
    history = summary.get("history") or []
    values = [epoch.get(metric) for epoch in history[1:] or history]
    return [float(value) for value in values if value is not None and math.isfinite(value)]


def steady(summary: Mapping[str, Any], metric: str) -> float | None:
    """Median of `per_epoch`."""
    values = per_epoch(summary, metric)
    return statistics.median(values) if values else None


def key_values(overrides: Sequence[str]) -> dict[str, str]:
    """`['loader.num_workers=2', '+model.width=8']` as key -> value."""
    parts = (override.lstrip("+").partition("=") for override in overrides)
    return {key: value for key, _, value in parts}


def swept(overrides: Sequence[Sequence[str]]) -> list[str]:
    """The keys that do not have the same value in every job, in the order of the command line."""
    chosen = [key_values(job) for job in overrides]
    keys = dict.fromkeys(key for job in chosen for key in job)
    return [key for key in keys if len({job.get(key) for job in chosen}) > 1]


def is_repeat(key: str) -> bool:
    """Whether a key is swept for mean and spread."""
    return key.rpartition(".")[2] in REPEATS


def is_about_speed(keys: Sequence[str]) -> bool:
    """Whether only the loader's settings are swept; other settings are swept for their effect on the metric."""
    own = [key for key in keys if not is_repeat(key)]
    return not keys or (bool(own) and all(key == "loader" or key.startswith("loader.") for key in own))


def groups(results: Sequence[JobResult], keys: Sequence[str]) -> list[Group]:
    """Results that differ only in seed and fold, together."""
    kept = [key for key in keys if not is_repeat(key)]
    found: dict[tuple[str, ...], list[JobResult]] = {}
    for result in sorted(results, key=lambda result: result.status != "FINISHED"):
        found.setdefault(tuple(result.settings.get(key, "") for key in kept), []).append(result)
    every = [Group(dict(zip(kept, values, strict=True)), members) for values, members in found.items()]
    return sorted(every, key=lambda group: min(result.number for result in group.results))


def order(value: str) -> tuple[int, float, str]:
    """Sorts the texts of settings: numbers by size, then words."""
    return (0, float(value), "") if is_number(value) else (1, 0.0, value)


def is_number(text: str) -> bool:
    """Whether the text of a setting is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def words(key: str) -> str:
    """A key as a column's head."""
    return "workers" if key == WORKERS else key.rpartition(".")[2].replace("_", " ")


def short(text: str) -> str:
    """The text of a setting; a number with many decimal places is rounded."""
    return number(float(text)) if "." in text and len(text) > 7 and is_number(text) else text


def chosen_words(chosen: Mapping[str, str]) -> str:
    """`workers 2, batch size 128`."""
    return ", ".join(f"{words(key)} {short(value)}" for key, value in chosen.items()) or "the only setting"


def words_of_metric(metric: str) -> str:
    """`validation accuracy` for validation/accuracy."""
    return metric.replace("/", " ").replace("_", " ") or "validation metric"


@dataclass(frozen=True)
class Ranking:
    """Settings ranked by one figure."""

    by: str  # name of the figure, such as best, samples_per_s or fed_pct
    groups: Sequence[Group]
    ranks: Sequence[int | None]  # of each group, from 1; None without such a figure

    @property
    def first(self) -> list[Group]:
        """All that share the first rank, the cheapest first; empty where no group has the figure."""
        return sorted((group for group, rank in zip(self.groups, self.ranks, strict=True) if rank == 1), key=cost)


def ranked(found: Sequence[Group], by: str, *, largest: bool | None = None) -> Ranking:
    """The settings with a finished job, ranked by one figure; `largest` None: more is better, except of an error."""
    if largest is None:
        largest = by != "best" or METRICS.get(metric_of(found), False)
    measured = [group.measured(by) if "FINISHED" in group.statuses else None for group in found]
    return Ranking(by, found, ranks(measured, largest=largest))


def by_speed(found: Sequence[Group]) -> Ranking:
    """Ranked by samples/s, or by waiting where the machine was not the same for all jobs."""
    return ranked(found, "samples_per_s" if comparable(found) else "fed_pct")


def metric_of(found: Sequence[Group]) -> str:
    """Name of the metric that counts as the result; empty where no job has one."""
    return next((result.metric for group in found for result in group.results if result.metric), "")


def cost(group: Group) -> tuple[float, bool, float]:
    """Order of settings by what they need: cores first, then memory."""
    texts = [group.settings.get(key, "") for key in (WORKERS, PREFETCH)]
    workers, prefetch = (float(text) if is_number(text) else _MANY for text in texts)
    return workers, group.settings.get(ENGINE) == "process", prefetch


def comparable(found: Sequence[Group]) -> bool:
    """Whether compute steps (at equal batch size and model) and free cores differ by no more than a tenth."""
    steps: dict[tuple[str, ...], list[JobResult]] = {}
    every = [result for group in found for result in group.results]
    for result in every:
        kept = (value for key, value in result.settings.items() if not _only_feeds(key))
        steps.setdefault(tuple(kept), []).append(result)
    compared = [Group({}, some).values("step_ms") for some in steps.values()]
    return not any(unlike(values) for values in [*compared, Group({}, every).values("free_cores")])


def _only_feeds(key: str) -> bool:
    """Whether a key cannot change what a step computes."""
    return is_repeat(key) or key == "loader" or (key.startswith("loader.") and key != BATCH_SIZE)
