"""The reports of sweeps and searches: the best settings with their commands, a table of all jobs, CSV, pictures."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from feedrate.reporting.picture import optional, save
from feedrate.reporting.results import (
    Group,
    JobResult,
    Ranking,
    by_speed,
    chosen_words,
    comparable,
    figures,
    groups,
    is_about_speed,
    metric_of,
    ranked,
    short,
    steady,
    words,
    words_of_metric,
)
from feedrate.system.text import fenced, table, wrapped_command

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ERROR_CHARACTERS = 200  # of an error, in a table
RATE = "loader/samples_per_s"
SPEEDS = {
    "samples_per_s": "samples/s",
    "wait_pct": "wait %",
    "held_pct": "held up %",
    "step_ms": "step ms",
    "free_cores": "free cores",
}
NOT_COMPARABLE = (
    "**Samples/s do not compare:** the compute step or the free cores differ by more than a tenth between jobs; "
    "so speed is ranked by waiting."
)


class Best(NamedTuple):
    """The best setting."""

    settings: str  # in words
    metrics: dict[str, float]  # under the names of a run's metrics; means over seeds and folds
    run_id: str | None  # of its first job, in MLflow


class Report:
    """The report of a sweep over every combination of the values of some keys."""

    job = "job"  # what one of them is called

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = list(keys)

    def measured(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """A finished run's figures, as `JobResult` names them."""
        return figures(summary)

    def ranking(self, results: Sequence[JobResult]) -> Ranking:
        """By speed where only the loader's settings are swept, by the validation metric elsewhere."""
        found = groups(results, self.keys)
        speed, metric = by_speed(found), ranked(found, "best")
        return speed if (is_about_speed(self.keys) and speed.first) or not metric.first else metric

    def best(self, results: Sequence[JobResult]) -> Best | None:
        """The best setting; None where no job finished."""
        first = self.ranking(results).first
        if not first:
            return None
        names = {RATE: "samples_per_s", "loader/wait_pct": "wait_pct", "best/loss": "value"}
        names[(metric_of(first) or "best/loss").replace("validation/", "best/")] = "best"
        means = {metric: first[0].mean(name) for metric, name in names.items()}
        metrics = {metric: mean for metric, mean in means.items() if mean is not None}
        return Best(chosen_words(first[0].settings), metrics, first[0].results[0].run_id)

    def table(self, results: Sequence[JobResult], rows: int | None = None, pictures: str = "") -> str:
        """Markdown: the best setting first, then a row for each setting, and the jobs' errors.

        Args:
            rows: how many settings are shown, the best first; None: all, in their order.
            pictures: Markdown between headline and table.
        """
        ranking = self.ranking(results)
        shown = list(zip(ranking.groups, ranking.ranks, strict=True))
        parts = [*self._headline(results, ranking), pictures]
        if len(results) > len(shown):
            parts.append("Mean ± standard deviation of the jobs of each setting; sweep.csv has each job.")
        if rows is not None and rows < len(shown):
            parts.append(f"The {rows} best of {len(shown)}; sweep.csv has all.")
            shown = sorted(shown, key=lambda pair: pair[1] or len(shown) + 1)[:rows]
        names, keys = self._figures(results, ranking), list(ranking.groups[0].settings)
        cells = []
        for group, rank in shown:
            numbers = ", ".join(map(str, sorted(result.number for result in group.results)))
            chosen = (short(group.settings[key]) for key in keys)
            cells.append([numbers, *chosen, str(rank or ""), *map(group.shown, names), ", ".join(group.statuses)])
        parts.append(table([self.job, *map(words, keys), "rank", *names.values(), "status"], cells, markdown=True))
        failed = [result for group, _ in shown for result in group.results if result.error]
        parts.append("\n".join(f"- {self.job} {r.number} {r.status}: {one_line(r.error)}" for r in failed))
        return "\n\n".join(filter(None, parts)) + "\n"

    def figures(self, results: Sequence[JobResult]) -> dict[str, Figure]:
        """Pictures by name, without suffix."""
        from feedrate.reporting.sweep_plots import MEASURES, sweep_figure

        found = groups(results, self.keys)
        wanted = {} if is_about_speed(self.keys) else {"metric": "best"}
        wanted |= {measure: measure for measure in MEASURES}
        shown = {name: measure for name, measure in wanted.items() if any(g.mean(measure) is not None for g in found)}
        return {name: sweep_figure(found, measure) for name, measure in shown.items()}

    def write(self, results: Sequence[JobResult], folder: Path) -> list[Path]:
        """Writes sweep.md, sweep.csv and the pictures; returns their paths."""
        paths = [folder / "sweep.md", folder / "sweep.csv"]
        paths[0].write_text(self.table(results), encoding="utf-8")
        self._write_csv(results, paths[1])
        with optional("of the sweep"):
            for name, picture in self.figures(results).items():
                save(picture, folder / f"{name}.png")
                paths.append(folder / f"{name}.png")
        return paths

    def _headline(self, results: Sequence[JobResult], ranking: Ranking) -> list[str]:
        if not ranking.first:
            return ["**No job finished.**"]
        speed, exact = by_speed(ranking.groups), ranked(ranking.groups, "best")
        shown = [one for one in ([exact, speed] if ranking.by == "best" else [speed, exact]) if one.first]
        commands = dict.fromkeys(wrapped_command(one.first[0].results[0].command) for one in shown)
        line = "" if comparable(ranking.groups) else NOT_COMPARABLE
        return [*map(_first_line, shown), line, fenced("\n".join(commands))]

    def _figures(self, results: Sequence[JobResult], ranking: Ranking) -> dict[str, str]:
        """Figures that are shown -> their heads, those of the ranking first."""
        speeds = {name: head for name, head in SPEEDS.items() if name != "held_pct" or any(r.held_pct for r in results)}
        metric = {"best": words_of_metric(metric_of(ranking.groups)), "best_epoch": "best epoch"}
        return {**metric, **speeds} if ranking.by == "best" else {**speeds, **metric}

    def _write_csv(self, results: Sequence[JobResult], path: Path) -> None:
        """A row for each job, under the keys' own names, with full precision."""
        names = list(self._figures(results, self.ranking(results)))
        head = [self._csv_name(name, results) for name in names]
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([self.job, *self.keys, *head, "status", "error", "command"])
            for r in results:
                chosen = (r.settings.get(key, "") for key in self.keys)
                measured = (getattr(r, name) for name in names)  # None is written as an empty cell
                writer.writerow([r.number, *chosen, *measured, r.status, one_line(r.error), r.command])

    def _csv_name(self, name: str, results: Sequence[JobResult]) -> str:
        return metric_of([Group({}, results)]) or name if name == "best" else name


class SearchReport(Report):
    """The report of a search for a large (`maximize`) or small (`minimize`) metric.

    Attributes:
        pictures: by name; set when the search ends.
    """

    job = "trial"

    def __init__(self, keys: Sequence[str], metric: str, direction: str) -> None:
        super().__init__(keys)
        self.metric, self._largest = metric, direction == "maximize"
        self.pictures: dict[str, Figure] = {}

    def measured(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        return {**figures(summary), "objective": objective(summary, self.metric)}

    def ranking(self, results: Sequence[JobResult]) -> Ranking:
        """By the metric; by speed, with its noise, where samples/s are maximized."""
        found = groups(results, self.keys)
        if self.metric == RATE and self._largest:
            return by_speed(found)
        return ranked(found, "objective", largest=self._largest)

    def best(self, results: Sequence[JobResult]) -> Best | None:
        best = super().best(results)
        if best is not None:
            best.metrics[self.metric] = self.ranking(results).first[0].results[0].objective or 0.0
        return best

    def figures(self, results: Sequence[JobResult]) -> dict[str, Figure]:
        return self.pictures

    def _headline(self, results: Sequence[JobResult], ranking: Ranking) -> list[str]:
        ended = ", ".join(f"{count} {status.lower()}" for status, count in Counter(r.status for r in results).items())
        if not ranking.first:
            return [f"**No trial finished** ({ended})."]
        group, equal = ranking.first[0], len(ranking.first)
        best = group.results[0]
        what = f"{words_of_metric(self.metric)} {group.shown('objective')}"
        if best.best_epoch is not None and not is_of_all_epochs(self.metric):
            what += f" in epoch {best.best_epoch}"
        goal = "the largest" if self._largest else "the smallest"
        which = goal if equal == 1 else f"the cheapest of {equal} that are equal within the noise,"
        return [
            f"**Best trial: {chosen_words(group.settings)}** · {what}, {which} of {len(results)} trials ({ended})",
            NOT_COMPARABLE if ranking.by != "objective" and not comparable(ranking.groups) else "",
            fenced(wrapped_command(best.command)),
        ]

    def _figures(self, results: Sequence[JobResult], ranking: Ranking) -> dict[str, str]:
        epoch = {} if is_of_all_epochs(self.metric) else {"best_epoch": "best epoch"}
        speeds = {name: head for name, head in SPEEDS.items() if name != "held_pct"}
        return {"objective": words_of_metric(self.metric), **epoch, **speeds}

    def _csv_name(self, name: str, results: Sequence[JobResult]) -> str:
        return self.metric if name == "objective" else name


def objective(summary: Mapping[str, Any], metric: str) -> float | None:
    """A run's value of a metric: the median over the epochs of a rate or wait, the best epoch's of all others."""
    if is_of_all_epochs(metric):
        return steady(summary, metric)
    found = (summary.get("best") or {}).get(metric)
    return None if found is None else float(found)


def is_of_all_epochs(metric: str) -> bool:
    """Whether a metric is a rate or a duration, of which the median over the epochs counts."""
    return metric.startswith(("loader/", "compute/"))


def _first_line(ranking: Ranking) -> str:
    """`**Fastest: workers 2** · 3,210 samples/s · 2 settings are equal within the noise, the cheapest named`."""
    best, equal = ranking.first[0], len(ranking.first)
    if ranking.by == "best":
        label, measured = f"Best {words_of_metric(metric_of([best]))}", [best.shown("best")]
        epochs = {result.best_epoch for result in best.results}
        measured[0] += f" in epoch {epochs.pop()}" if len(epochs) == 1 and None not in epochs else ""
    else:
        label = "Fastest" if ranking.by == "samples_per_s" else "Waits least"
        measured = [f"{best.shown('samples_per_s')} samples/s", f"waited {best.shown('wait_pct')} %"]
    if equal > 1:
        which = f"all {equal}" if equal == len(ranking.groups) else f"{equal}"
        measured.append(f"{which} settings are equal within the noise, the cheapest named")
    return " · ".join([f"**{label}: {chosen_words(best.settings)}**", *measured])


def one_line(text: str) -> str:
    """An error as one line of limited length."""
    line = " ".join(text.split())
    return line if len(line) <= ERROR_CHARACTERS else line[: ERROR_CHARACTERS - 1] + "…"
