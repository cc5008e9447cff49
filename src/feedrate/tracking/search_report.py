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

from feedrate.tracking.note import number
from feedrate.tracking.search_plots import history, slices
from feedrate.tracking.sweep_ranks import words
from feedrate.tracking.sweep_report import Report
from feedrate.tracking.sweep_results import Result, figures, steady
from feedrate.tracking.sweep_table import best_job, cell, chosen_words, fenced, one_line, table, words_of_metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN = {"samples_per_s": "samples/s", "wait_pct": "wait %", "epoch_s": "epoch s"}
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
        best, parts = self._best(results), []
        ended = [
            f"{sum(r.status == s for r in results)} {s.lower()}" for s in ("FINISHED", "PRUNED", "FAILED", "KILLED")
        ]
        ended = [text for text in ended if not text.startswith("0 ")]
        goal = "largest" if self._largest else "smallest"
        if best is None:
            parts.append(f"**No trial finished** ({', '.join(ended)}).")
        else:
            parts.append(
                f"**Best trial: {chosen_words(self._settings(best))}** · {words_of_metric(self.metric)}"
                f" {cell(best.objective)}, the {goal} of {len(results)} trials ({', '.join(ended)})"
            )
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
        shown = [name for name in _SHOWN if name != _SAME.get(self.metric)]
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
            "search": history(results, label, largest=self._largest),
            "parameters": slices(results, self.keys, label, best, self._importance, self._logarithmic),
        }

    def write(self, results: Sequence[Result], folder: Path) -> list[Path]:
        self._importance = {} if len(self.keys) < 2 else dict(self._ask())
        return super().write(results, folder)

    def _trials(self, results: Sequence[Result]) -> str:
        shown = {name: head for name, head in _SHOWN.items() if name != _SAME.get(self.metric)}
        names = ("objective", *shown)
        head = ["trial", *map(words, self.keys), words_of_metric(self.metric), *shown.values(), "status"]
        rows = [
            [str(r.number), *self._settings(r).values(), *(cell(getattr(r, name)) for name in names), r.status]
            for r in results
        ]
        return table(head, rows)

    def _settings(self, result: Result) -> dict[str, str]:
        """As a person reads them; the command has all digits."""
        return {key: _short(result.settings.get(key, "")) for key in self.keys}

    def _best(self, results: Sequence[Result]) -> Result | None:
        finished = [r for r in results if r.status == "FINISHED" and r.objective is not None]
        return min(finished, key=self._rank, default=None)

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
    if metric.startswith(("loader/", "compute/")):
        return steady(summary, metric)
    found = (summary.get("best") or {}).get(metric)
    return None if found is None else float(found)


def _short(text: str) -> str:
    try:
        value = float(text)
    except ValueError:
        return text
    return text if len(text) <= 7 else number(value)
