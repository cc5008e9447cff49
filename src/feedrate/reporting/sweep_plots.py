"""Pictures of a sweep: heat-map over two swept keys, line or bars over one, bars where there are more; with the knee.

The figures come from sweep_results.py and sweep_ranks.py; colours and sizes are those of plots.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from feedrate.reporting.plots import BLUE, DPI, GREEN, GREY, ORANGE, fitted
from feedrate.reporting.sweep_ranks import Knee, Ranking, by_speed, knee_words, knees, ranked, words
from feedrate.reporting.sweep_results import Group, is_number, ordered, varying
from feedrate.reporting.sweep_table import chosen_words, figure, words_of_metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURES = {"samples_per_s": "samples/s", "wait_pct": "time waited for data, %"}
METRIC = "best"  # the validation metric
_MAPS = {"samples_per_s": "Blues", "wait_pct": "Oranges", METRIC: "Greens"}
_COLOURS = {"samples_per_s": BLUE, "wait_pct": ORANGE, METRIC: GREEN}
_WAIT_TOP_PCT = 20.0  # a heat-map of waits that are all small should look calm


def sweep_figure(groups: Sequence[Group], measure: str) -> Figure:
    """One measure over what was swept, seeds and folds averaged; the best setting in the title.

    Args:
        groups: with equal keys; at least one has the measure.
        measure: one of MEASURES, or METRIC.
    """
    keys = varying(groups)
    ranking = ranked(groups, "fed_pct" if measure == "wait_pct" else measure)
    if len(keys) == 2:
        picture, axes = _heat_map(ranking, keys, measure)
    else:
        picture, axes = _row(ranking, keys, measure)
    title = f"{_label(groups, measure)}\n{_best_words(ranking, measure)}"
    axes.set_title(fitted(title, picture.get_figwidth() - 1.2, 10), fontsize=10, loc="left")
    marks, marked = axes.get_legend_handles_labels()
    if marks:
        picture.legend(marks[:1], marked[:1], loc="outside lower left", frameon=False, fontsize=8)
    return picture


def _label(groups: Sequence[Group], measure: str) -> str:
    metric = next((result.metric for group in groups for result in group.results if result.metric), "")
    return words_of_metric(metric) if measure == METRIC else MEASURES[measure]


def _compares(groups: Sequence[Group], measure: str) -> bool:
    return measure != "samples_per_s" or by_speed(groups).by == measure


def _best_words(ranking: Ranking, measure: str) -> str:
    """Which setting is the best, where that can be told."""
    if not _compares(ranking.groups, measure):
        return "do not compare: steps or free cores differ between jobs"
    if ranking.undecided:
        return "the same with every setting, within the noise"
    word = {"samples_per_s": "most", "wait_pct": "least", METRIC: "best"}[measure]
    best, *others = ranking.first
    equal = f", or with {len(others)} others" if others else ""
    return f"{word}: {figure(best, measure)} with {chosen_words(best.settings)}{equal}"


def _heat_map(ranking: Ranking, keys: Sequence[str], measure: str) -> tuple[Figure, Any]:
    import numpy as np

    groups = ranking.groups
    down, across = (ordered({group.settings[key] for group in groups}) for key in keys)
    grid = np.full((len(down), len(across)), np.nan)
    for group in groups:
        if (value := group.mean(measure)) is not None:
            grid[down.index(group.settings[keys[0]]), across.index(group.settings[keys[1]])] = value
    picture = _figure(max(4.8, 2.4 + 1.0 * len(across)), max(2.6, 1.5 + 0.55 * len(down)))
    axes = picture.subplots()
    top = np.nanmax(grid)
    top = max(top, _WAIT_TOP_PCT) if measure == "wait_pct" else top
    low = np.nanmin(grid) if measure == METRIC else 0.0
    axes.set_facecolor("#eeeeee")
    axes.imshow(grid, cmap=_MAPS[measure], vmin=low, vmax=top, aspect="auto")
    compares = _compares(groups, measure)
    cells = {tuple(group.settings[key] for key in keys): group for group in groups}
    for (row, column), value in np.ndenumerate(grid):
        cell, missing = cells.get((down[row], across[column])), not np.isfinite(value)
        colour = GREY if missing else "white" if value - low > 0.6 * (top - low) else "black"
        weight = "bold" if cell in ranking.first and compares else "normal"
        text = "none" if cell is None or missing else figure(cell, measure)
        axes.text(column, row, text, ha="center", va="center", color=colour, weight=weight)
    for bend in _knees(groups, measure):
        row, column = (line.index(bend.group.settings[key]) for line, key in zip((down, across), keys, strict=True))
        axes.add_patch(_frame(row, column, _knee_label(groups)))
    axes.set_yticks(range(len(down)), down)
    axes.set_xticks(range(len(across)), across)
    axes.set_ylabel(words(keys[0]))
    axes.set_xlabel(words(keys[1]))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return picture, axes


def _row(ranking: Ranking, keys: Sequence[str], measure: str) -> tuple[Figure, Any]:
    """One key: a line if its values are numbers, else bars; several keys: a bar for each setting."""
    one, groups = len(keys) == 1, ranking.groups
    shown = list(groups)
    if one:
        order = ordered({group.settings[keys[0]] for group in groups})
        shown.sort(key=lambda group: order.index(group.settings[keys[0]]))
    labels = [group.settings[keys[0]] if one else chosen_words({k: group.settings[k] for k in keys}) for group in shown]
    means = [group.mean(measure) for group in shown]
    heights = [float("nan") if mean is None else mean for mean in means]
    spreads = [group.spread(measure) or 0.0 for group in shown]
    places = list(range(len(shown)))
    colour = _COLOURS[measure]
    if one:
        picture = _figure(max(4.8, 1.6 + 0.7 * len(shown)), 3.6)
        axes = picture.subplots()
        if all(is_number(label) for label in labels):
            axes.errorbar(places, heights, yerr=spreads, color=colour, marker="o", lw=1.8, capsize=3)
        elif measure == METRIC:  # of which 0 means nothing
            axes.errorbar(places, heights, yerr=spreads, color=colour, fmt="o", capsize=3)
        else:
            axes.bar(places, heights, yerr=spreads, color=colour, width=0.6, capsize=3)
        axes.set_xticks(places, labels)
        axes.set_xlabel(words(keys[0]))
        axes.set_ylabel(_label(groups, measure))
        for bend in _knees(groups, measure):
            place = shown.index(bend.group)
            axes.plot([place], [heights[place]], "o", mfc="none", mec=GREEN, mew=2, ms=13, label=_knee_label(groups))
        if measure != METRIC:
            axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    else:
        picture = _figure(7.5, 1.4 + 0.28 * len(shown))
        axes = picture.subplots()
        if measure == METRIC:
            axes.errorbar(heights, places, xerr=spreads, color=colour, fmt="o", capsize=3)
        else:
            axes.barh(places, heights, xerr=spreads, color=colour, height=0.65, capsize=3)
            axes.set_xlim(left=0)
        axes.set_yticks(places, labels, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel(_label(groups, measure))
    axes.spines[["top", "right"]].set_visible(False)
    return picture, axes


def _knees(groups: Sequence[Group], measure: str) -> Sequence[Knee]:
    return knees(by_speed(groups)) if measure != METRIC else []


def _knee_label(groups: Sequence[Group]) -> str:
    return f"knee: {knee_words(by_speed(groups))}"


def _frame(row: int, column: int, label: str) -> Any:
    """Marks a cell of a heat-map; its white border shows on dark cells."""
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    around = [withStroke(linewidth=5, foreground="white")]
    corner = column - 0.46, row - 0.42
    return Rectangle(corner, 0.92, 0.84, fill=False, ec=GREEN, lw=2.5, path_effects=around, label=label)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
