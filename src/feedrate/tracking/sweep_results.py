"""What came out of a sweep's jobs: a result for each job, from the summary.json that it leaves, and groups over seeds.

How results are shown is in sweep_table.py and sweep_plots.py.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEED = "seed"
METRICS = (("validation/accuracy", True), ("validation/mae", False), ("validation/loss", False))
"""What counts as a result, best known first, and whether more is better."""
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
        epoch_s: mean seconds of an epoch's waiting, transfer and compute.
        best: best validation metric; `metric` is its name, such as validation/accuracy.
        value: lowest validation loss.
        objective: what a search makes large or small.
    """

    number: int
    settings: Mapping[str, str]
    command: str
    status: str
    error: str = ""
    samples_per_s: float | None = None
    wait_pct: float | None = None
    epoch_s: float | None = None
    best: float | None = None
    metric: str = ""
    value: float | None = None
    objective: float | None = None


@dataclass(frozen=True)
class Group:
    """Jobs that differ in nothing but the seed; of one job where no seeds are swept."""

    settings: Mapping[str, str]
    results: Sequence[Result]

    def values(self, name: str) -> list[float]:
        """The finite values of one figure, such as `samples_per_s`, of the jobs that have it."""
        found = (getattr(result, name) for result in self.results)
        return [value for value in found if value is not None and math.isfinite(value)]

    def mean(self, name: str) -> float | None:
        """Mean of a figure over the jobs that have it."""
        values = self.values(name)
        return statistics.fmean(values) if values else None

    def spread(self, name: str) -> float | None:
        """Standard deviation of a figure, for at least two jobs."""
        values = self.values(name)
        return statistics.stdev(values) if len(values) > 1 else None


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
    return {
        "samples_per_s": steady(summary, "loader/samples_per_s"),
        "wait_pct": steady(summary, "loader/wait_pct"),
        "epoch_s": sum(spent.get(name, 0.0) for name in _SPENT) / len(history) if history and spent else None,
        "best": best.get(metric),
        "metric": metric,
        "value": best.get("validation/loss"),
    }


def steady(summary: Mapping[str, Any], metric: str) -> float | None:
    """Median of a metric over a run's epochs, without the first where there are more: it is cold."""
    history = summary.get("history") or []
    values = [epoch.get(metric) for epoch in history[1:] or history]
    kept = [float(value) for value in values if value is not None and math.isfinite(value)]
    return statistics.median(kept) if kept else None


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
    """Results that differ in nothing but the seed, together."""
    kept = [key for key in keys if key != SEED]
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
    """Whether a setting, as it was typed, is one."""
    try:
        float(text)
    except ValueError:
        return False
    return True
