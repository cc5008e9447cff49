"""Results of a sweep's jobs from their summary.json, groups over seeds and folds, and how they rank.

Settings whose figures differ by no more than the noise (timing/noise.py) share a rank.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from feedrate.timing.ceilings import HELD_UP_PCT
from feedrate.timing.noise import FLOOR, Measured, knee, noise, ranks, shown, unlike

WORKERS, BATCH_SIZE = "loader.num_workers", "loader.batch_size"
ENGINE, PREFETCH = "loader.engine", "loader.prefetch_factor"
REPEATS = ("seed", "fold")  # last part of keys that are swept for mean and spread
METRICS = (("validation/accuracy", True), ("validation/mae", False), ("validation/loss", False))
"""The result of a run is the first of these that it has; and whether more is better."""
_EXACT = ("best", "best_epoch", "value", "objective")  # the same whenever a job is repeated
_MANY = 1e9  # workers, where their number is not known


@dataclass(frozen=True, kw_only=True)
class Result:
    """One job. Rates, shares and step times are medians over the epochs, without the first where there are more."""

    number: int  # from 0
    settings: Mapping[str, str]  # key -> value as text, of workers, batch size and all that is swept
    command: str  # repeats this job alone; without secrets
    status: str  # FINISHED, PRUNED, FAILED, KILLED, or NOT RUN
    error: str = ""
    samples_per_s: float | None = None
    wait_pct: float | None = None  # time waited for data
    held_pct: float = 0.0  # by how much the loader's work slowed the steps down; 0 where little
    step_ms: float | None = None  # compute step
    free_cores: float | None = None  # cores that the job could use
    epoch_s: float | None = None  # mean, without evaluation and checkpoints
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
    results: Sequence[Result]

    def values(self, name: str) -> list[float]:
        """Finite values of one figure, such as `samples_per_s`; of jobs with equal settings a metric counts once."""
        results: Iterable[Result] = self.results
        if name in _EXACT:
            finished = sorted(self.results, key=lambda result: result.status == "FINISHED")
            results = {tuple(sorted(result.settings.items())): result for result in finished}.values()
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


def read_summary(folder: Path) -> dict[str, Any]:
    """The job's summary.json; empty where there is none."""
    try:
        found = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def figures(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A finished run's figures, as `Result` names them."""
    history, best, spent = (summary.get(key) or {} for key in ("history", "best", "phases_s"))
    metric = next((name for name, _ in METRICS if name in best), "")
    rate, wait = steady(summary, "loader/samples_per_s"), steady(summary, "loader/wait_pct")
    ceiling = steady(summary, "compute/ceiling_samples_per_s")
    seconds = sum(spent.get(name, 0.0) for name in ("wait", "transfer", "compute"))
    epoch_s = seconds / len(history) if history and spent else None
    noises = {"fed_pct": noise(per_epoch(summary, "loader/wait_pct"))}
    if rate:
        within = (steady(summary, "loader/noise_pct") or 0.0) * rate / 100
        noises["samples_per_s"] = noise(per_epoch(summary, "loader/samples_per_s"), within)
        noises["epoch_s"] = (epoch_s or 0.0) * noises["samples_per_s"] / rate
    held = 100 * (1 - rate / ceiling) - wait if rate is not None and wait is not None and ceiling else 0.0
    return {
        "samples_per_s": rate,
        "wait_pct": wait,
        "held_pct": held if held > HELD_UP_PCT else 0.0,
        "step_ms": steady(summary, "compute/step_ms_p50"),
        "free_cores": steady(summary, "compute/free_cores"),
        "epoch_s": epoch_s,
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


def settings(overrides: Sequence[str]) -> dict[str, str]:
    """`['loader.num_workers=2', '+model.width=8']` as key -> value."""
    parts = (override.lstrip("+").partition("=") for override in overrides)
    return {key: value for key, _, value in parts}


def swept(overrides: Sequence[Sequence[str]]) -> list[str]:
    """The keys that do not have the same value in every job, in the order of the command line."""
    chosen = [settings(job) for job in overrides]
    keys = dict.fromkeys(key for job in chosen for key in job)
    return [key for key in keys if len({job.get(key) for job in chosen}) > 1]


def columns(keys: Sequence[str]) -> list[str]:
    """The settings that a table shows: workers, batch size, then the other swept keys."""
    return list(dict.fromkeys([WORKERS, BATCH_SIZE, *keys]))


def is_repeat(key: str) -> bool:
    """Whether a key is swept for mean and spread."""
    return key.rpartition(".")[2] in REPEATS


def is_about_speed(keys: Sequence[str]) -> bool:
    """Whether only the loader's settings are swept; other settings are swept for their effect on the metric."""
    own = [key for key in keys if not is_repeat(key)]
    return not keys or (bool(own) and all(key == "loader" or key.startswith("loader.") for key in own))


def groups(results: Sequence[Result], keys: Sequence[str]) -> list[Group]:
    """Results that differ only in seed and fold, together."""
    kept = [key for key in keys if not is_repeat(key)]
    found: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        found.setdefault(tuple(result.settings.get(key, "") for key in kept), []).append(result)
    return [Group(dict(zip(kept, values, strict=True)), members) for values, members in found.items()]


def varying(found: Sequence[Group]) -> list[str]:
    """The keys that do not have the same value in every group."""
    return [key for key in found[0].settings if len({group.settings[key] for group in found}) > 1]


def ordered(values: Iterable[str]) -> list[str]:
    """Numbers by size, then words."""
    return sorted(values, key=lambda value: (0, float(value), "") if is_number(value) else (1, 0.0, value))


def is_number(text: str) -> bool:
    """Whether the text of a setting is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


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

    @property
    def undecided(self) -> bool:
        """Whether several settings were measured and all of them are equal."""
        return len(self.first) > 1 and all(rank in (1, None) for rank in self.ranks)

    def rank_of(self, result: Result) -> int | None:
        """Rank of the setting that a job belongs to."""
        pairs = zip(self.groups, self.ranks, strict=True)
        return next((rank for group, rank in pairs if result in group.results), None)


def ranked(found: Sequence[Group], by: str, *, largest: bool | None = None) -> Ranking:
    """The settings ranked by one figure; `largest` None: more is better, except of an error metric."""
    if largest is None:
        largest = by != "best" or dict(METRICS).get(metric_of(found), False)
    return Ranking(by, found, ranks([group.measured(by) for group in found], largest=largest))


def by_speed(found: Sequence[Group]) -> Ranking:
    """Ranked by samples/s, or by waiting where the machine was not the same for all jobs."""
    return ranked(found, "fed_pct" if not_the_same(found) else "samples_per_s")


def metric_of(found: Sequence[Group]) -> str:
    """Name of the metric that counts as the result; empty where no job has one."""
    return next((result.metric for group in found for result in group.results if result.metric), "")


def cost(group: Group) -> tuple[float, bool, float]:
    """Order of settings by what they need: cores first, then memory."""
    texts = [group.settings.get(key, "") for key in (WORKERS, PREFETCH)]
    workers, prefetch = (float(text) if is_number(text) else _MANY for text in texts)
    return workers, group.settings.get(ENGINE) == "process", prefetch


def not_the_same(found: Sequence[Group], job: str = "job") -> str:
    """Why samples/s do not compare: compute steps or free cores differ by more than a tenth; empty where they do not.

    Args:
        job: what each is called.
    """
    results = [result for group in found for result in group.results]
    equal_steps: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        kept = (value for key, value in result.settings.items() if not _only_feeds(key))
        equal_steps.setdefault(tuple(kept), []).append(result)
    facts = []
    if pair := next(filter(None, (_unlike(some, "step_ms") for some in equal_steps.values())), None):
        quick, slow = pair
        facts.append(
            f"the compute step took {shown(quick.step_ms or 0.0)} ms in {job} {quick.number} and "
            f"{shown(slow.step_ms or 0.0)} ms in {job} {slow.number}"
        )
    if pair := _unlike(results, "free_cores"):
        few, many = pair
        facts.append(
            f"{many.free_cores:.1f} cores were free for {job} {many.number} and {few.free_cores:.1f} for {job} "
            f"{few.number}"
        )
    return f"**Samples/s do not compare:** {', and '.join(facts)}; so speed is ranked by waiting." if facts else ""


def _unlike(results: Sequence[Result], name: str) -> tuple[Result, Result] | None:
    """The jobs with the smallest and the largest of a figure, where the two differ too much."""
    known = {
        i: value for i, r in enumerate(results) if (value := getattr(r, name)) is not None and math.isfinite(value)
    }
    if not unlike(list(known.values())):
        return None
    return results[min(known, key=known.__getitem__)], results[max(known, key=known.__getitem__)]


def _only_feeds(key: str) -> bool:
    """Whether a key cannot change what a step computes."""
    return is_repeat(key) or key == "loader" or (key.startswith("loader.") and key != BATCH_SIZE)


def knees(ranking: Ranking) -> dict[str, Group]:
    """The fewest workers that are as good as any: `2 workers at batch size 32` -> the setting.

    One for each value of the other swept key at which several numbers of workers were measured; empty unless workers
    are swept, alone or with one other key besides seed and fold.
    """
    keys = varying(ranking.groups)
    if WORKERS not in keys or len(keys) > 2:
        return {}
    over = next((key for key in keys if key != WORKERS), "")
    found = {}
    for value in ordered({group.settings.get(over, "") for group in ranking.groups}):
        row = [group for group in ranking.groups if group.settings.get(over, "") == value]
        rates = {group.settings[WORKERS]: rate for group in row if (rate := group.measured(ranking.by)) is not None}
        if len(rates) > 1:
            counts = ordered(rates)
            workers = knee(rates, cost=counts.index)
            text = f"{workers} worker{'' if workers == '1' else 's'}" + (f" at {words(over)} {value}" if over else "")
            text += " (the most measured)" if workers == counts[-1] else ""
            found[text] = next(group for group in row if group.settings[WORKERS] == workers)
    return found


def words(key: str) -> str:
    """A key as a column's head."""
    return "workers" if key == WORKERS else key.rpartition(".")[2].replace("_", " ")
