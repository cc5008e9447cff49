"""The report of a search (hydra_plugins/feedrate_optuna): best trial, what mattered, a table of trials and pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from feedrate.reporting.sweep_report import SPEEDS, Best, Report
from feedrate.reporting.sweep_results import (
    Group,
    Ranking,
    Result,
    by_speed,
    figures,
    not_the_same,
    ranked,
    steady,
    words,
)
from feedrate.reporting.sweep_words import chosen_words, figure, words_of_metric
from feedrate.system.text import fenced

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RATE = "loader/samples_per_s"


class SearchReport(Report):
    """The report of a search.

    Args:
        keys: what is searched.
        metric, direction: what is to become large (maximize) or small (minimize).

    Attributes:
        importance: key -> share of the metric's variation that it explains; set when the search ends.
    """

    job = "trial"

    def __init__(self, keys: Sequence[str], metric: str, direction: str) -> None:
        super().__init__(keys)
        self.metric, self._largest = metric, direction == "maximize"
        self._of_all_epochs = is_of_all_epochs(metric)
        self._name = {RATE: "samples_per_s", "loader/wait_pct": "wait_pct"}.get(metric, "objective")
        self.importance: Mapping[str, float] = {}

    def measured(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        return {**figures(summary), "objective": objective(summary, self.metric)}

    def ranking(self, results: Sequence[Result]) -> Ranking:
        """Finished trials by the metric; by speed, with its noise, where samples/s are maximized."""
        finished = [
            Group({k: r.settings.get(k, "") for k in self.keys}, [r]) for r in results if r.status == "FINISHED"
        ]
        if self.metric == RATE and self._largest:
            return by_speed(finished)
        return ranked(finished, "objective", largest=self._largest)

    def best(self, results: Sequence[Result]) -> Best | None:
        best = super().best(results)
        if best is None:
            return None
        value = self.ranking(results).first[0].results[0].objective
        return best._replace(metrics={**best.metrics, self.metric: float(value or 0.0)})

    def figures(self, results: Sequence[Result]) -> dict[str, Figure]:
        from feedrate.reporting.sweep_plots import search_figure

        if not any(r.objective is not None for r in results):
            return {}
        first = self.ranking(results).first
        label, best = words_of_metric(self.metric), first[0].results[0] if first else None
        return {"search": search_figure(results, self.keys, label, best, self.importance, largest=self._largest)}

    def _headline(self, results: Sequence[Result], ranking: Ranking) -> list[str]:
        ended = ", ".join(f"{count} {status.lower()}" for status, count in Counter(r.status for r in results).items())
        if not ranking.first:
            return [f"**No trial finished** ({ended})."]
        group, equal = ranking.first[0], len(ranking.first)
        best = group.results[0]
        what = f"{words_of_metric(self.metric)} {figure(group, self._name)}"
        if best.best_epoch is not None and not self._of_all_epochs:
            what += f" in epoch {best.best_epoch}"
        goal = "the largest" if self._largest else "the smallest"
        which = goal if equal == 1 else f"the cheapest of {equal} that are equal within the noise,"
        parts = [
            f"**Best trial: {chosen_words(group.settings)}** · {what}, {which} of {len(results)} trials ({ended})",
            not_the_same(ranking.groups, "trial") if ranking.by != "objective" else "",
            fenced(best.command),
        ]
        if len(self.keys) > 1 and self.importance:
            shares = ", ".join(f"{words(key)} {100 * share:.0f} %" for key, share in self.importance.items())
            parts.append(f"What mattered, as shares of the metric's variation: {shares}.")
        return [part for part in parts if part]

    def _columns(self, results: Sequence[Result], ranking: Ranking) -> dict[str, str]:
        epoch = {} if self._of_all_epochs else {"best_epoch": "best epoch"}
        speeds = {name: head for name, head in SPEEDS.items() if name not in (self._name, "held_pct")}
        return {self._name: words_of_metric(self.metric), **epoch, **speeds}

    def _settings(self) -> list[str]:
        return self.keys

    def _csv_figures(self, results: Sequence[Result]) -> dict[str, str]:
        names = dict.fromkeys(self._columns(results, self.ranking(results)))
        return {"objective": self.metric, **{name: name for name in names if name != self._name}}


def objective(summary: Mapping[str, Any], metric: str) -> float | None:
    """A run's value of a metric: the median over the epochs of a rate or wait, the best epoch's of all others."""
    if is_of_all_epochs(metric):
        return steady(summary, metric)
    found = (summary.get("best") or {}).get(metric)
    return None if found is None else float(found)


def is_of_all_epochs(metric: str) -> bool:
    """Whether a metric is a rate or a duration, of which the median over the epochs counts."""
    return metric.startswith(("loader/", "compute/"))
