"""What a search leaves in its folder and on its parent run: the best trial first, a table, and two pictures.

The search itself is hydra_plugins/feedrate_optuna; the pictures are drawn in search_plots.py.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feedrate.reporting.run_summary import number
from feedrate.reporting.search_plots import history, slices
from feedrate.reporting.sweep_ranks import Ranking, by_speed, not_the_same, words
from feedrate.reporting.sweep_report import Report
from feedrate.reporting.sweep_results import Group, Result, figures, steady
from feedrate.reporting.sweep_table import (
    best_job,
    cell,
    chosen_words,
    fenced,
    figure,
    one_line,
    table,
    words_of_metric,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN = {
    "best_epoch": "best epoch",
    "samples_per_s": "samples/s",
    "wait_pct": "wait %",
    "step_ms": "step ms",
    "free_cores": "free cores",
    "epoch_s": "epoch s",
}
_SAME = {"loader/samples_per_s": "samples_per_s", "loader/wait_pct": "wait_pct"}  # columns that are there anyway


class SearchReport(Report):
    """The report of a search.

    Args:
        keys: what is searched.
        metric, direction: what is to become large (maximize) or small (minimize).
        logarithmic: keys whose values are drawn by their logarithm.
        importance: key -> share of the metric's variation that it explains; asked once, at the end.
    """

    def __init__(
        self,
        keys: Sequence[str],
        metric: str,
        direction: str,
        logarithmic: Sequence[str],
        importance: Callable[[], Mapping[str, float]],
    ) -> None:
        super().__init__(keys)
        self.metric, self._largest, self._logarithmic = metric, direction == "maximize", set(logarithmic)
        self._ask, self._importance = importance, dict[str, float]()

    def measured(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        return {**figures(summary), "objective": objective(summary, self.metric)}

    def best(self, results: Sequence[Result]) -> tuple[str, dict[str, float]]:
        best = self._best(results)
        if best is None:
            return "", {}
        _, metrics = best_job([best], [])
        return chosen_words(self._settings(best)), {**metrics, self.metric: float(best.objective or 0.0)}

    def table(self, results: Sequence[Result], rows: int | None = None, pictures: str = "") -> str:
        best, parts = self._best(results), list[str]()
        ended = [
            f"{sum(r.status == s for r in results)} {s.lower()}" for s in ("FINISHED", "PRUNED", "FAILED", "KILLED")
        ]
        ended = [text for text in ended if not text.startswith("0 ")]
        goal = "largest" if self._largest else "smallest"
        if best is None:
            parts.append(f"**No trial finished** ({', '.join(ended)}).")
        else:
            what = f"{words_of_metric(self.metric)} {self._value(best)}"
            if best.best_epoch is not None and not _is_of_all_epochs(self.metric):
                what += f" in epoch {best.best_epoch}"
            ranking = self._speeds(results)
            equal = len(ranking.first) if ranking is not None else 1
            which = f"the {goal}" if equal == 1 else f"the cheapest of {equal} that are equal within the noise,"
            of = f"of {len(results)} trials ({', '.join(ended)})"
            parts.append(f"**Best trial: {chosen_words(self._settings(best))}** · {what}, {which} {of}")
            if ranking is not None and (line := not_the_same(ranking.groups, "trial")):
                parts.append(line)
            parts.append(fenced(best.command))
        if self._importance:
            shares = ", ".join(f"{words(key)} {100 * share:.0f} %" for key, share in self._importance.items())
            parts.append(f"What mattered, as shares of the metric's variation: {shares}.")
        if pictures:
            parts.append(pictures)
        shown = list(results)
        if rows is not None and rows < len(results):
            shown = sorted(results, key=self._rank)[:rows]
            parts.append(f"The {rows} best of {len(results)} trials; sweep.csv has all.")
        parts.append(self._trials(shown))
        wrong = [f"- trial {r.number} {r.status}: {one_line(r.error)}" for r in shown if r.error]
        return "\n\n".join([*parts, *(["\n".join(wrong)] if wrong else [])]) + "\n"

    def csv(self, results: Sequence[Result]) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        shown = self._shown()
        writer.writerow(["trial", *self.keys, self.metric, *shown, "status", "error", "command"])
        for r in results:
            measured = ["" if (value := getattr(r, name)) is None else value for name in ("objective", *shown)]
            chosen = [r.settings.get(key, "") for key in self.keys]
            writer.writerow([r.number, *chosen, *measured, r.status, one_line(r.error), r.command])
        return text.getvalue()

    def figures(self, results: Sequence[Result]) -> dict[str, Figure]:
        if not any(r.objective is not None for r in results):
            return {}
        label, best = words_of_metric(self.metric), self._best(results)
        return {
            "search": history(results, label, best, largest=self._largest),
            "parameters": slices(results, self.keys, label, best, self._importance, self._logarithmic),
        }

    def write(self, results: Sequence[Result], folder: Path) -> list[Path]:
        self._importance = {} if len(self.keys) < 2 else dict(self._ask())
        return super().write(results, folder)

    def _shown(self) -> dict[str, str]:
        """Figures beside the metric -> their heads."""
        without = [_SAME.get(self.metric), "best_epoch" if _is_of_all_epochs(self.metric) else None]
        return {name: head for name, head in _SHOWN.items() if name not in without}

    def _trials(self, results: Sequence[Result]) -> str:
        shown = self._shown()
        head = ["trial", *map(words, self.keys), words_of_metric(self.metric), *shown.values(), "status"]
        rows = []
        for r in results:
            figures = (figure(Group(r.settings, [r]), name) for name in shown)
            rows.append([str(r.number), *self._settings(r).values(), self._value(r), *figures, r.status])
        return table(head, rows)

    def _value(self, result: Result) -> str:
        """The metric of a trial."""
        same = _SAME.get(self.metric)
        return figure(Group(result.settings, [result]), same) if same is not None else cell(result.objective)

    def _settings(self, result: Result) -> dict[str, str]:
        """As a person reads them; the command has all digits."""
        return {key: _short(result.settings.get(key, "")) for key in self.keys}

    def _best(self, results: Sequence[Result]) -> Result | None:
        if (ranking := self._speeds(results)) is not None:
            return ranking.first[0].results[0]
        finished = [r for r in results if r.status == "FINISHED" and r.objective is not None]
        return min(finished, key=self._rank, default=None)

    def _speeds(self, results: Sequence[Result]) -> Ranking | None:
        """Of a search for speed the finished trials ranked by it, since the best may differ by no more than noise."""
        if self.metric != "loader/samples_per_s" or not self._largest:
            return None
        ranking = by_speed([Group(r.settings, [r]) for r in results if r.status == "FINISHED"])
        return ranking if ranking.first else None

    def _rank(self, result: Result) -> float:
        """Finished trials first, the best in front."""
        if result.objective is None or not math.isfinite(result.objective):
            return math.inf
        value = -result.objective if self._largest else result.objective
        return value if result.status == "FINISHED" else 1e300


def objective(summary: Mapping[str, Any], metric: str) -> float | None:
    """A run's value of a metric: of rates and waits the median over the epochs, without the first where there are more;
    of everything else that of the best epoch, whose weights are kept. None if the run has no such metric.
    """
    if _is_of_all_epochs(metric):
        return steady(summary, metric)
    found = (summary.get("best") or {}).get(metric)
    return None if found is None else float(found)


def _is_of_all_epochs(metric: str) -> bool:
    """Whether it is a rate or a duration, of which the best epoch has none of its own."""
    return metric.startswith(("loader/", "compute/"))


def _short(text: str) -> str:
    try:
        value = float(text)
    except ValueError:
        return text
    return text if len(text) <= 7 else number(value)
