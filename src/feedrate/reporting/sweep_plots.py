"""Pictures of a sweep: a heat map of its settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from feedrate.reporting.picture import BLUE, GREEN, GREY, ORANGE, new_figure, set_heading, styled
from feedrate.reporting.plots import bare
from feedrate.reporting.results import Group, chosen_words, comparable, metric_of, order, ranked, words, words_of_metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURES = {"samples_per_s": "samples/s", "wait_pct": "time waited for data, %"}
METRIC = "best"  # the validation metric
COLOURS = {"samples_per_s": (BLUE, "Blues"), "wait_pct": (ORANGE, "Oranges"), METRIC: (GREEN, "Greens")}
WAIT_TOP_PCT = 20.0  # a heat map of waits that are all small stays pale


@styled()
def sweep_figure(groups: Sequence[Group], measure: str) -> Figure:
    """One measure over what was swept, seeds and folds averaged; the best setting stands in the title.

    Args:
        groups: with equal keys; at least one has the measure.
        measure: one of MEASURES, or METRIC.
    """
    label = words_of_metric(metric_of(groups)) if measure == METRIC else MEASURES[measure]
    first: list[Group] = []
    title = "do not compare: steps or free cores differ between jobs"
    if measure != "samples_per_s" or comparable(groups):
        first = ranked(groups, "fed_pct" if measure == "wait_pct" else measure).first
        word = {"samples_per_s": "most", "wait_pct": "least", METRIC: "best"}[measure]
        equal = f", or with {len(first) - 1} more" if len(first) > 1 else ""
        title = f"{word}: {first[0].shown(measure)} with {chosen_words(first[0].settings)}{equal}"
    figure = _heat_map(groups, measure, first)
    set_heading(figure, f"{label}\n{title}")
    return figure


def _heat_map(groups: Sequence[Group], measure: str, best: Sequence[Group]) -> Figure:
    """A cell for each setting, those of the best in bold: the last swept key across, the others down."""
    import numpy as np
    from matplotlib.colors import LogNorm, Normalize

    *others, last = groups[0].settings or [""]
    pairs = [([g.settings[key] for key in others], g.settings.get(last, "")) for g in groups]
    down = sorted({tuple(row) for row, _ in pairs}, key=lambda row: [order(value) for value in row])
    across = sorted({column for _, column in pairs}, key=order)
    cells = {(down.index(tuple(row)), across.index(column)): g for (row, column), g in zip(pairs, groups, strict=True)}
    grid = np.full((len(down), len(across)), np.nan)
    for place, group in cells.items():
        grid[place] = group.mean(measure)  # None becomes nan
    figure = new_figure(min(max(4.8, 2.4 + len(across)), 16.0), max(2.6, 1.5 + 0.55 * len(down)))
    axes = figure.subplots()
    low, top = float(np.nanmin(grid)), float(np.nanmax(grid))
    norm = Normalize(low if measure == METRIC else 0.0, max(top, WAIT_TOP_PCT) if measure == "wait_pct" else top)
    if measure == "samples_per_s" and 0 < 10 * low < top:
        norm = LogNorm(low / 2, top)
    axes.set_facecolor("#eeeeee")
    axes.imshow(grid, cmap=COLOURS[measure][1], norm=norm, aspect="auto")
    for (row, column), value in np.ndenumerate(grid):
        cell = cells.get((row, column))
        text = "none" if cell is None or not np.isfinite(value) else cell.shown(measure)
        colour = GREY if text == "none" else "white" if norm(value) > 0.6 else "black"
        weight = "bold" if cell in best else "normal"
        axes.text(column, row, text, ha="center", va="center", color=colour, weight=weight)
    axes.set_yticks(range(len(down)), [", ".join(row) for row in down])
    axes.set_xticks(range(len(across)), across)
    axes.set_ylabel(", ".join(map(words, others)))
    axes.set_xlabel(words(last))
    bare(axes)
    return figure
