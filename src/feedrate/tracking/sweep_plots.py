"""Pictures of a sweep: heat-map over two swept keys, line or bars over one, bars where there are more; with the knee.

The figures come from sweep_table.py; colours and sizes are those of plots.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from feedrate.tracking.note import number
from feedrate.tracking.plots import BLUE, DPI, GREEN, GREY, ORANGE
from feedrate.tracking.sweep_results import Group, is_number, ordered, varying
from feedrate.tracking.sweep_table import KNEE, chosen_words, knees, words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURES = {"samples_per_s": "samples/s", "wait_pct": "time waited for data, %"}
_MAPS, _COLOURS = {"samples_per_s": "Blues", "wait_pct": "Oranges"}, {"samples_per_s": BLUE, "wait_pct": ORANGE}
_WAIT_TOP_PCT = 20.0  # a heat-map of waits that are all small should look calm


def sweep_figure(groups: Sequence[Group], measure: str) -> Figure:
    """One measure over what was swept, seeds averaged; the best setting in the title.

    Args:
        groups: with equal keys; at least one has the measure.
        measure: samples_per_s or wait_pct.
    """
    keys = varying(groups)
    if len(keys) == 2:
        figure, axes = _heat_map(groups, keys, measure)
    else:
        figure, axes = _row(groups, keys, measure)
    better = max if measure == "samples_per_s" else min
    measured = [(value, group) for group in groups if (value := group.mean(measure)) is not None]
    value, group = better(measured, key=lambda pair: pair[0])
    word = "most" if better is max else "least"
    chosen = {key: group.settings[key] for key in keys}
    title = f"{MEASURES[measure]}\n{word}: {number(value)} with {chosen_words(chosen)}"
    axes.set_title(title, fontsize=10, loc="left")
    marks, marked = axes.get_legend_handles_labels()
    if marks:
        figure.legend(marks[:1], marked[:1], loc="outside lower left", frameon=False, fontsize=8)
    return figure


def _heat_map(groups: Sequence[Group], keys: Sequence[str], measure: str) -> tuple[Figure, Any]:
    import numpy as np

    down, across = (ordered({group.settings[key] for group in groups}) for key in keys)
    grid = np.full((len(down), len(across)), np.nan)
    for group in groups:
        if (value := group.mean(measure)) is not None:
            grid[down.index(group.settings[keys[0]]), across.index(group.settings[keys[1]])] = value
    figure = _figure(max(4.8, 2.4 + 1.0 * len(across)), max(2.6, 1.5 + 0.55 * len(down)))
    axes = figure.subplots()
    top = np.nanmax(grid)
    top = max(top, _WAIT_TOP_PCT) if measure == "wait_pct" else top
    axes.set_facecolor("#eeeeee")
    axes.imshow(grid, cmap=_MAPS[measure], vmin=0, vmax=top, aspect="auto")
    best = np.nanargmax(grid) if measure == "samples_per_s" else np.nanargmin(grid)
    for (row, column), value in np.ndenumerate(grid):
        missing = not np.isfinite(value)
        colour = GREY if missing else "white" if value > 0.6 * top else "black"
        weight = "bold" if row * len(across) + column == best else "normal"
        text = "none" if missing else number(float(value))
        axes.text(column, row, text, ha="center", va="center", color=colour, weight=weight)
    for bend in knees(groups):
        row, column = (line.index(bend.group.settings[key]) for line, key in zip((down, across), keys, strict=True))
        axes.add_patch(_frame(row, column))
    axes.set_yticks(range(len(down)), down)
    axes.set_xticks(range(len(across)), across)
    axes.set_ylabel(words(keys[0]))
    axes.set_xlabel(words(keys[1]))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure, axes


def _row(groups: Sequence[Group], keys: Sequence[str], measure: str) -> tuple[Figure, Any]:
    """One key: a line if its values are numbers, else bars; several keys: a bar for each setting."""
    one = len(keys) == 1
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
        figure = _figure(max(4.8, 1.6 + 0.7 * len(shown)), 3.6)
        axes = figure.subplots()
        if all(is_number(label) for label in labels):
            axes.errorbar(places, heights, yerr=spreads, color=colour, marker="o", lw=1.8, capsize=3)
        else:
            axes.bar(places, heights, yerr=spreads, color=colour, width=0.6, capsize=3)
        axes.set_xticks(places, labels)
        axes.set_xlabel(words(keys[0]))
        axes.set_ylabel(MEASURES[measure])
        for bend in knees(groups):
            place = shown.index(bend.group)
            axes.plot([place], [heights[place]], "o", mfc="none", mec=GREEN, mew=2, ms=13, label=f"knee: {KNEE}")
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    else:
        figure = _figure(7.5, 1.4 + 0.28 * len(shown))
        axes = figure.subplots()
        axes.barh(places, heights, xerr=spreads, color=colour, height=0.65, capsize=3)
        axes.set_yticks(places, labels, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel(MEASURES[measure])
        axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _frame(row: int, column: int) -> Any:
    """Marks a cell of a heat-map; its white border shows on dark cells."""
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    around = [withStroke(linewidth=5, foreground="white")]
    corner, label = (column - 0.46, row - 0.42), f"knee: {KNEE}"
    return Rectangle(corner, 0.92, 0.84, fill=False, ec=GREEN, lw=2.5, path_effects=around, label=label)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
