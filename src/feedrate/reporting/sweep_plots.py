"""Pictures of a sweep: a heat map over two swept keys, else a point for each setting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from feedrate.reporting.picture import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    SMALL,
    WIDTH,
    new_figure,
    scale_axis,
    set_heading,
    styled,
)
from feedrate.reporting.plots import bare
from feedrate.reporting.results import (
    Group,
    chosen_words,
    comparable,
    is_number,
    metric_of,
    ordered,
    ranked,
    varying,
    words,
    words_of_metric,
)

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
    keys = varying(groups)
    figure = _heat_map(groups, keys, measure, first) if len(keys) == 2 else _points(groups, keys, measure, label)
    set_heading(figure, f"{label}\n{title}")
    return figure


def _heat_map(groups: Sequence[Group], keys: Sequence[str], measure: str, best: Sequence[Group]) -> Figure:
    """A cell for each pair of values; those of the best settings are bold."""
    import numpy as np
    from matplotlib.colors import LogNorm, Normalize

    down, across = (ordered({group.settings[key] for group in groups}) for key in keys)
    cells = {(down.index(g.settings[keys[0]]), across.index(g.settings[keys[1]])): g for g in groups}
    grid = np.full((len(down), len(across)), np.nan)
    for place, group in cells.items():
        grid[place] = group.mean(measure)  # None becomes nan
    figure = new_figure(max(4.8, 2.4 + 1.0 * len(across)), max(2.6, 1.5 + 0.55 * len(down)))
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
    axes.set_yticks(range(len(down)), down)
    axes.set_xticks(range(len(across)), across)
    axes.set_ylabel(words(keys[0]))
    axes.set_xlabel(words(keys[1]))
    bare(axes)
    return figure


def _points(groups: Sequence[Group], keys: Sequence[str], measure: str, label: str) -> Figure:
    """Mean and standard deviation of each setting; joined by a line over one key of numbers, else one below another."""
    line = len(keys) == 1 and all(is_number(group.settings[keys[0]]) for group in groups)
    if line:
        groups = sorted(groups, key=lambda group: float(group.settings[keys[0]]))
    means = [math.nan if (mean := group.mean(measure)) is None else mean for group in groups]
    spreads = [group.spread(measure) or 0.0 for group in groups]
    places, colour = range(len(groups)), COLOURS[measure][0]
    figure = new_figure(WIDTH, 3.6 if line else 1.4 + 0.28 * len(groups))
    axes = figure.subplots()
    axis = axes.yaxis if line else axes.xaxis
    rates = [mean for mean in means if measure == "samples_per_s" and math.isfinite(mean)]
    logarithmic = scale_axis(axis, rates)
    if line:
        axes.errorbar(places, means, yerr=spreads, color=colour, fmt="o-")
        axes.set_xticks(places, [group.settings[keys[0]] for group in groups])
        axes.set_xlabel(words(keys[0]))
    else:
        axes.errorbar(means, places, xerr=spreads, color=colour, fmt="o")
        labels = [chosen_words({key: group.settings[key] for key in keys}) for group in groups]
        axes.set_yticks(places, labels, fontsize=SMALL)
        axes.invert_yaxis()
    axis.set_label_text(label)
    if measure != METRIC and not logarithmic:
        (axes.set_ylim if line else axes.set_xlim)(0)
    return figure
