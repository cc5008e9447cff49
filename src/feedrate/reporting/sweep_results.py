"""What came out of a sweep's jobs: a result for each job, from its summary.json, and groups over seeds and folds.

How they are ranked is in sweep_ranks.py, how they are shown in sweep_table.py and sweep_plots.py.
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
from feedrate.timing.noise import FLOOR, Measured, noise

REPEATS = ("seed", "fold")  # last part of keys that are not swept for their own sake, but for mean and spread
METRICS = (("validation/accuracy", True), ("validation/mae", False), ("validation/loss", False))
"""What counts as a result, best known first, and whether more is better."""
_REPRODUCIBLE = ("best", "best_epoch", "value", "objective")  # the same in every job with the same settings
_SPENT = ("wait", "transfer", "compute")  # an epoch without evaluation and checkpoints


@dataclass(frozen=True, kw_only=True)
class Result:
    """One job.

    Attributes:
        number: of the job, from 0.
        settings: key -> value as it was typed, of workers, batch size and all that is swept.
        command: makes this job alone again; without secrets.
        status: FINISHED, FAILED, KILLED, or NOT RUN.
        error: why it is not FINISHED.
        samples_per_s: median over the epochs; the first is left out where there are more.
        wait_pct: time waited for data in percent, likewise.
        held_pct: time by which the loader, at work beside the steps, made them longer, in percent; 0 where little.
        step_ms: the compute step, likewise.
        free_cores: that the job could use, likewise.
        epoch_s: mean seconds of an epoch's waiting, transfer and compute.
        best: validation metric of the best epoch; `metric` is its name, such as validation/accuracy.
        best_epoch: that of the lowest validation loss, from 1.
        value: lowest validation loss.
        objective: what a search makes large or small.
        noise: of figures that are rates or shares of the time, in their unit; timing/noise.py has the rule.
    """

    number: int
    settings: Mapping[str, str]
    command: str
    status: str
    error: str = ""
    samples_per_s: float | None = None
    wait_pct: float | None = None
    held_pct: float = 0.0
    step_ms: float | None = None
    free_cores: float | None = None
    epoch_s: float | None = None
    best: float | None = None
    best_epoch: int | None = None
    metric: str = ""
    value: float | None = None
    objective: float | None = None
    noise: Mapping[str, float] = field(default_factory=dict)

    @property
    def fed_pct(self) -> float | None:
        """Share of the time in which the loader did not keep the step waiting, nor made it longer."""
        return None if self.wait_pct is None else max(0.0, 100.0 - self.wait_pct - self.held_pct)


@dataclass(frozen=True)
class Group:
    """Jobs that differ in nothing but seed and fold; of one job where neither is swept."""

    settings: Mapping[str, str]
    results: Sequence[Result]

    @property
    def distinct(self) -> list[Result]:
        """The results without jobs that repeat another one's settings, seed and fold; those that finished are kept."""
        found: dict[tuple[tuple[str, str], ...], Result] = {}
        for result in sorted(self.results, key=lambda result: result.status != "FINISHED"):
            found.setdefault(tuple(sorted(result.settings.items())), result)
        return list(found.values())

    def values(self, name: str) -> list[float]:
        """The finite values of one figure, such as `samples_per_s`, of the jobs that have it.

        A metric is the same whenever a job is repeated and counts once; a rate is measured again each time.
        """
        results = self.distinct if name in _REPRODUCIBLE else self.results
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
        """Mean of a figure with its noise; a validation metric has none but what its repeats show."""
        mean = self.mean(name)
        if mean is None:
            return None
        within = max((result.noise.get(name, 0.0) for result in self.results), default=0.0)
        return Measured(mean, noise(self.values(name), within), 0.0 if name == "best" else FLOOR)


def read_summary(folder: Path) -> dict[str, Any]:
    """The job's summary.json; empty where it left none."""
    try:
        found = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def figures(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A finished run's figures, as `Result` names them."""
    history = summary.get("history") or []
    best = summary.get("best") or {}
    metric = next((name for name, _ in METRICS if name in best), "")
    spent = summary.get("phases_s") or {}
    rates, waits = per_epoch(summary, "loader/samples_per_s"), per_epoch(summary, "loader/wait_pct")
    rate, wait = steady(summary, "loader/samples_per_s"), steady(summary, "loader/wait_pct")
    ceiling = steady(summary, "compute/ceiling_samples_per_s")
    epoch_s = sum(spent.get(name, 0.0) for name in _SPENT) / len(history) if history and spent else None
    noises = {"fed_pct": noise(waits)}
    if rate:
        noises["samples_per_s"] = noise(rates, (steady(summary, "loader/noise_pct") or 0.0) * rate / 100)
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
        "best_epoch": next((number for number, epoch in enumerate(history, 1) if epoch == best), None),
        "metric": metric,
        "value": best.get("validation/loss"),
        "noise": noises,
    }


def per_epoch(summary: Mapping[str, Any], metric: str) -> list[float]:
    """The finite values of a metric in a run's epochs, without the first where there are more: it is cold."""
    history = summary.get("history") or []
    values = [epoch.get(metric) for epoch in history[1:] or history]
    return [float(value) for value in values if value is not None and math.isfinite(value)]


def steady(summary: Mapping[str, Any], metric: str) -> float | None:
    """Median of a metric over a run's epochs, without the first where there are more."""
    values = per_epoch(summary, metric)
    return statistics.median(values) if values else None


def swept(overrides: Sequence[Sequence[str]]) -> list[str]:
    """The keys that do not have the same value in every job, in the order of the command line."""
    chosen = [settings(job) for job in overrides]
    keys = list(dict.fromkeys(key for job in chosen for key in job))
    return [key for key in keys if len({job.get(key) for job in chosen}) > 1]


def settings(overrides: Sequence[str]) -> dict[str, str]:
    """`['loader.num_workers=2', '+model.width=8']` as key -> value."""
    parts = (override.lstrip("+").partition("=") for override in overrides)
    return {key: value for key, _, value in parts}


def groups(results: Sequence[Result], keys: Sequence[str]) -> list[Group]:
    """Results that differ in nothing but seed and fold, together."""
    kept = [key for key in keys if not is_repeat(key)]
    found: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        found.setdefault(tuple(result.settings.get(key, "") for key in kept), []).append(result)
    return [Group(dict(zip(kept, values, strict=True)), members) for values, members in found.items()]


def is_repeat(key: str) -> bool:
    """Whether a key is swept to see how much results scatter."""
    return key.rpartition(".")[2] in REPEATS


def varying(found: Sequence[Group]) -> list[str]:
    """The keys that do not have the same value in every group."""
    return [key for key in found[0].settings if len({group.settings[key] for group in found}) > 1]


def ordered(values: Iterable[str]) -> list[str]:
    """Numbers by size, then words."""
    return sorted(values, key=lambda value: (0, float(value), "") if is_number(value) else (1, 0.0, value))


def is_number(text: str) -> bool:
    """Whether a setting, as it was typed, is one."""
    try:
        float(text)
    except ValueError:
        return False
    return True
