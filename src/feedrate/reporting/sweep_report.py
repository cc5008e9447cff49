"""The report of a sweep: the best settings with their commands, a table of all jobs, a CSV file and pictures."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from feedrate.reporting.picture import optional, save
from feedrate.reporting.sweep_results import (
    Group,
    Ranking,
    Result,
    by_speed,
    columns,
    cost,
    figures,
    groups,
    is_about_speed,
    is_repeat,
    knees,
    metric_of,
    not_the_same,
    ranked,
    words,
)
from feedrate.reporting.sweep_words import chosen_words, figure, short, words_of_metric
from feedrate.system.text import fenced, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ERROR_CHARACTERS = 200  # of an error, in a table
SPEEDS = {
    "samples_per_s": "samples/s",
    "wait_pct": "wait %",
    "held_pct": "held up %",
    "step_ms": "step ms",
    "free_cores": "free cores",
    "epoch_s": "epoch s",
}


class Best(NamedTuple):
    """The best setting."""

    settings: str  # in words
    metrics: dict[str, float]  # under the names of a run's metrics; means over seeds and folds
    run_id: str | None  # of its first job, in MLflow


class Report:
    """The report of a sweep over every combination.

    Args:
        keys: what is swept.
    """

    job = "job"  # what one of them is called

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = list(keys)

    def measured(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """A finished run's figures, as `Result` names them."""
        return figures(summary)

    def ranking(self, results: Sequence[Result]) -> Ranking:
        """By speed where only the loader's settings are swept, by the validation metric elsewhere."""
        found = groups(results, self.keys)
        speed, metric = by_speed(found), ranked(found, "best")
        return speed if (is_about_speed(self.keys) and speed.first) or not metric.first else metric

    def best(self, results: Sequence[Result]) -> Best | None:
        """The best setting; None where no job finished."""
        first = self.ranking(results).first
        if not first:
            return None
        names = {"loader/samples_per_s": "samples_per_s", "loader/wait_pct": "wait_pct", "best/loss": "value"}
        names[(metric_of(first) or "best/loss").replace("validation/", "best/")] = "best"
        means = {metric: first[0].mean(name) for metric, name in names.items()}
        metrics = {metric: mean for metric, mean in means.items() if mean is not None}
        return Best(chosen_words(first[0].settings), metrics, first[0].results[0].run_id)

    def table(self, results: Sequence[Result], rows: int | None = None, pictures: str = "") -> str:
        """Markdown: the best setting first, over seeds and folds means and spread, then the jobs and their errors.

        Args:
            rows: how many jobs are shown, the best first; None: all, in their order.
            pictures: Markdown between headline and tables.
        """
        ranking, shown = self.ranking(results), list(results)
        parts = [*self._headline(results, ranking), *([pictures] if pictures else [])]
        if repeated := any(len(group.results) > 1 for group in ranking.groups):
            over = " and ".join(words(key) for key in self.keys if is_repeat(key))
            parts += [f"Over {over}, mean ± standard deviation:", self._means(ranking), "Each job:"]
        if rows is not None and rows < len(results):
            shown = sorted(results, key=lambda result: ranking.rank_of(result) or len(results) + 1)[:rows]
            parts.append(f"The {rows} best of {len(results)} {self.job}s; sweep.csv has all.")
        parts.append(self._jobs(shown, ranking, with_rank=not repeated))
        if errors := [f"- {self.job} {r.number} {r.status}: {one_line(r.error)}" for r in shown if r.error]:
            parts.append("\n".join(errors))
        return "\n\n".join(parts) + "\n"

    def figures(self, results: Sequence[Result]) -> dict[str, Figure]:
        """Pictures by name, without suffix."""
        from feedrate.reporting.sweep_plots import MEASURES, sweep_figure

        found = groups(results, self.keys)
        wanted = {} if is_about_speed(self.keys) else {"metric": "best"}
        wanted |= {measure: measure for measure in MEASURES}
        shown = {name: measure for name, measure in wanted.items() if any(g.mean(measure) is not None for g in found)}
        return {name: sweep_figure(found, measure) for name, measure in shown.items()}

    def write(self, results: Sequence[Result], folder: Path) -> list[Path]:
        """Writes sweep.md, sweep.csv and the pictures; returns their paths."""
        paths = [folder / "sweep.md", folder / "sweep.csv"]
        paths[0].write_text(self.table(results), encoding="utf-8")
        self._write_csv(results, paths[1])
        with optional("of the sweep"):
            for name, picture in self.figures(results).items():
                save(picture, folder / f"{name}.png")
                paths.append(folder / f"{name}.png")
        return paths

    def _headline(self, results: Sequence[Result], ranking: Ranking) -> list[str]:
        if not ranking.first:
            return ["**No job finished.**"]
        speed, exact = by_speed(ranking.groups), ranked(ranking.groups, "best")
        shown = [one for one in ([exact, speed] if ranking.by == "best" else [speed, exact]) if one.first]
        lines = [_first_line(one) for one in shown]
        lines += [not_the_same(ranking.groups)] if speed.first else ["No job has enough steps for a rate."]
        lines.append(fenced("\n".join(dict.fromkeys(_command(one.first[0]) for one in shown))))
        if bends := knees(speed):
            as_good = "are as fast" if speed.by == "samples_per_s" else "wait as little"
            lines.append(f"**Knee: {', '.join(bends)}** · the fewest workers that {as_good} as any, within the noise")
        return [line for line in lines if line]

    def _columns(self, results: Sequence[Result], ranking: Ranking) -> dict[str, str]:
        """Figures that are shown -> their heads, those of the ranking first."""
        speeds = {name: head for name, head in SPEEDS.items() if name != "held_pct" or any(r.held_pct for r in results)}
        metric = {"best": words_of_metric(metric_of(ranking.groups)), "best_epoch": "best epoch"}
        return {**metric, **speeds} if ranking.by == "best" else {**speeds, **metric}

    def _means(self, ranking: Ranking) -> str:
        names = self._columns([result for group in ranking.groups for result in group.results], ranking)
        del names["best_epoch"]
        head = [*map(words, ranking.groups[0].settings), "rank", "finished", *names.values()]
        rows = []
        for group, rank in zip(ranking.groups, ranking.ranks, strict=True):
            finished = f"{sum(result.status == 'FINISHED' for result in group.results)} of {len(group.results)}"
            measured = (figure(group, name) for name in names)
            rows.append([*group.settings.values(), str(rank or ""), finished, *measured])
        return table(head, rows, markdown=True)

    def _jobs(self, results: Sequence[Result], ranking: Ranking, *, with_rank: bool) -> str:
        names, keys = self._columns(results, ranking), self._settings()
        head = [self.job, *map(words, keys), *["rank"] * with_rank, *names.values(), "status"]
        rows = []
        for r in results:
            rank = [str(ranking.rank_of(r) or "")] * with_rank
            chosen = (short(r.settings.get(key, "")) for key in keys)
            measured = (figure(Group(r.settings, [r]), name) for name in names)
            rows.append([str(r.number), *chosen, *rank, *measured, r.status])
        return table(head, rows, markdown=True)

    def _settings(self) -> list[str]:
        """Keys that are columns of the tables."""
        return columns(self.keys)

    def _csv_figures(self, results: Sequence[Result]) -> dict[str, str]:
        """Figures in the CSV file -> their heads."""
        metric = next((result.metric for result in results if result.metric), "best")
        return {**{name: name for name in SPEEDS}, "best": metric, "best_epoch": "best_epoch"}

    def _write_csv(self, results: Sequence[Result], path: Path) -> None:
        """A row for each job, under the keys' own names, with full precision."""
        keys, names = self._settings(), self._csv_figures(results)
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([self.job, *keys, *names.values(), "status", "error", "command"])
            for r in results:
                chosen = (r.settings.get(key, "") for key in keys)
                measured = (getattr(r, name) for name in names)  # None is written as an empty cell
                writer.writerow([r.number, *chosen, *measured, r.status, one_line(r.error), r.command])


def _first_line(ranking: Ranking) -> str:
    """`**Fastest: workers 2** · 3,210 samples/s · 2 settings are equal within the noise, the cheapest named`."""
    best, *others = ranking.first
    if ranking.by == "best":
        label, measured = f"Best {words_of_metric(metric_of([best]))}", [figure(best, "best")]
        epochs = {result.best_epoch for result in best.results}
        measured[0] += f" in epoch {epochs.pop()}" if len(epochs) == 1 and None not in epochs else ""
    else:
        label = "Fastest" if ranking.by == "samples_per_s" else "Waits least"
        measured = [f"{figure(best, 'samples_per_s')} samples/s", f"waited {figure(best, 'wait_pct')} %"]
        measured += [f"held up for {figure(best, 'held_pct')} %"] if best.mean("held_pct") else []
    name = chosen_words(best.settings)
    if ranking.undecided:
        every = "every setting" + " that finished" * (None in ranking.ranks)
        return " · ".join([f"**{label}: {every}, within the noise**", f"{name}: {measured[0]}", *measured[1:]])
    if others:
        cheapest = ", the cheapest named" * (cost(best) != cost(others[-1]))
        measured.append(f"{len(ranking.first)} settings are equal within the noise{cheapest}")
    return " · ".join([f"**{label}: {name}**", *measured])


def _command(group: Group) -> str:
    """Of a job that finished."""
    return next(result.command for result in group.results if result.status == "FINISHED")


def one_line(text: str) -> str:
    """An error as one line of limited length."""
    line = " ".join(text.split())
    return line if len(line) <= ERROR_CHARACTERS else line[: ERROR_CHARACTERS - 1] + "…"
