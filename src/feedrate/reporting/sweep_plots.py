"""Pictures of a sweep (heat map, line or bars, with the knee) and of a search (trials in order and over each key)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from feedrate.reporting.picture import BLUE, GREEN, GREY, ORANGE, SMALL, new_figure, scale_axis, set_heading, styled
from feedrate.reporting.plots import bare
from feedrate.reporting.sweep_results import (
    Group,
    Ranking,
    Result,
    by_speed,
    is_number,
    knees,
    metric_of,
    ordered,
    ranked,
    varying,
    words,
)
from feedrate.reporting.sweep_words import chosen_words, figure, words_of_metric
from feedrate.system.text import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURES = {"samples_per_s": "samples/s", "wait_pct": "time waited for data, %"}
METRIC = "best"  # the validation metric
COLOURS = {"samples_per_s": (BLUE, "Blues"), "wait_pct": (ORANGE, "Oranges"), METRIC: (GREEN, "Greens")}
WAIT_TOP_PCT = 20.0  # a heat map of waits that are all small stays pale
ACROSS = 3  # panels side by side
KNEE = "knee: the fewest workers as good as any, within the noise"
RING: dict[str, Any] = {"ls": "", "marker": "o", "mfc": "none", "mew": 2, "ms": 12, "zorder": 3}


@styled()
def sweep_figure(groups: Sequence[Group], measure: str) -> Figure:
    """One measure over what was swept, seeds and folds averaged; the best setting stands in the title.

    Args:
        groups: with equal keys; at least one has the measure.
        measure: one of MEASURES, or METRIC.
    """
    ranking = ranked(groups, "fed_pct" if measure == "wait_pct" else measure)
    draw = _heat_map if len(varying(groups)) == 2 else _row
    picture, axes = draw(ranking, measure)
    set_heading(picture, f"{_label(groups, measure)}\n{_best_words(ranking, measure)}")
    marks, labels = axes.get_legend_handles_labels()
    if marks:
        picture.legend(marks[:1], labels[:1], loc="outside lower left")
    return picture


def _label(groups: Sequence[Group], measure: str) -> str:
    return words_of_metric(metric_of(groups)) if measure == METRIC else MEASURES[measure]


def _compares(groups: Sequence[Group], measure: str) -> bool:
    return measure != "samples_per_s" or by_speed(groups).by == measure


def _knees(groups: Sequence[Group], measure: str) -> list[Group]:
    return [] if measure == METRIC else list(knees(by_speed(groups)).values())


def _best_words(ranking: Ranking, measure: str) -> str:
    if not _compares(ranking.groups, measure):
        return "do not compare: steps or free cores differ between jobs"
    if ranking.undecided:
        return "the same with every setting, within the noise"
    word = {"samples_per_s": "most", "wait_pct": "least", METRIC: "best"}[measure]
    best, *others = ranking.first
    equal = f", or with {len(others)} more" if others else ""
    return f"{word}: {figure(best, measure)} with {chosen_words(best.settings)}{equal}"


def _heat_map(ranking: Ranking, measure: str) -> tuple[Figure, Any]:
    import numpy as np
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.patches import Rectangle

    keys, groups = varying(ranking.groups), ranking.groups
    down, across = (ordered({group.settings[key] for group in groups}) for key in keys)
    cells = {(down.index(g.settings[keys[0]]), across.index(g.settings[keys[1]])): g for g in groups}
    grid = np.full((len(down), len(across)), np.nan)
    for place, group in cells.items():
        grid[place] = group.mean(measure)  # None becomes nan
    picture = new_figure(max(4.8, 2.4 + 1.0 * len(across)), max(2.6, 1.5 + 0.55 * len(down)))
    axes = picture.subplots()
    low, top = float(np.nanmin(grid)), float(np.nanmax(grid))
    if measure == "samples_per_s" and 0 < 10 * low < top:
        norm: Normalize = LogNorm(low / 2, top)
    else:
        top = max(top, WAIT_TOP_PCT) if measure == "wait_pct" else top
        norm = Normalize(low if measure == METRIC else 0.0, top)
    axes.set_facecolor("#eeeeee")
    axes.imshow(grid, cmap=COLOURS[measure][1], norm=norm, aspect="auto")
    best = ranking.first if _compares(groups, measure) else []
    for (row, column), value in np.ndenumerate(grid):
        missing, cell = not np.isfinite(value), cells.get((row, column))
        colour = GREY if missing else "white" if norm(value) > 0.6 else "black"
        text = "none" if cell is None or missing else figure(cell, measure)
        weight = "bold" if cell in best else "normal"
        axes.text(column, row, text, ha="center", va="center", color=colour, weight=weight)
    for bend in _knees(groups, measure):
        row, column = next(place for place, group in cells.items() if group is bend)
        for colour, width in (("white", 5.0), (GREEN, 2.5)):  # the white border shows on dark cells
            label = KNEE if colour == GREEN else ""
            frame = Rectangle((column - 0.46, row - 0.42), 0.92, 0.84, fill=False, ec=colour, lw=width, label=label)
            axes.add_patch(frame)
    axes.set_yticks(range(len(down)), down)
    axes.set_xticks(range(len(across)), across)
    axes.set_ylabel(words(keys[0]))
    axes.set_xlabel(words(keys[1]))
    bare(axes)
    return picture, axes


def _row(ranking: Ranking, measure: str) -> tuple[Figure, Any]:
    """Over one key of numbers a line, else a horizontal bar for each setting."""
    keys, groups = varying(ranking.groups), list(ranking.groups)
    line = len(keys) == 1 and all(is_number(group.settings[keys[0]]) for group in groups)
    if line:
        groups.sort(key=lambda group: float(group.settings[keys[0]]))
    means = [math.nan if (mean := group.mean(measure)) is None else mean for group in groups]
    spreads = [group.spread(measure) or 0.0 for group in groups]
    places, colour = range(len(groups)), COLOURS[measure][0]
    picture = new_figure(max(4.8, 1.6 + 0.7 * len(groups)), 3.6) if line else new_figure(7.5, 1.4 + 0.28 * len(groups))
    axes = picture.subplots()
    axis = axes.yaxis if line else axes.xaxis
    logarithmic = scale_axis(axis, [mean for mean in means if measure == "samples_per_s" and math.isfinite(mean)])
    if line:
        axes.errorbar(places, means, yerr=spreads, color=colour, fmt="o-")
        for bend in _knees(groups, measure):
            place = groups.index(bend)
            axes.plot([place], [means[place]], **RING, mec=GREEN, label=KNEE)
        axes.set_xticks(places, [group.settings[keys[0]] for group in groups])
        axes.set_xlabel(words(keys[0]))
    else:
        if measure == METRIC or logarithmic:  # a bar would begin at a 0 that means nothing
            axes.errorbar(means, places, xerr=spreads, color=colour, fmt="o")
        else:
            axes.barh(places, means, xerr=spreads, color=colour, height=0.65)
        labels = [chosen_words({key: group.settings[key] for key in keys}) for group in groups]
        axes.set_yticks(places, labels, fontsize=SMALL)
        axes.invert_yaxis()
        axes.grid(visible=False)
    axis.set_label_text(_label(groups, measure))
    if measure != METRIC and not logarithmic:
        (axes.set_ylim if line else axes.set_xlim)(0)
    return picture, axes


@styled()
def search_figure(
    results: Sequence[Result],
    keys: Sequence[str],
    label: str,
    best: Result | None,
    importance: Mapping[str, float],
    *,
    largest: bool,
) -> Figure:
    """The metric of each trial in their order and over each key; in the titles how much of it a key explains.

    Args:
        label: the metric in words.
        best: the trial that is ringed.
        largest: whether the best is the largest.
    """
    panels = ["trial", *keys]
    across = min(ACROSS, len(panels))
    down = math.ceil(len(panels) / across)
    picture = new_figure(3.6 * across, 3.2 * down + 0.5)
    grid = picture.subplots(down, across, squeeze=False, sharey=True).ravel()
    shown = [r for r in results if r.objective is not None]
    for axes, key in zip(grid, panels, strict=False):
        values = {r.number: str(r.number) if key == "trial" else r.settings.get(key, "") for r in shown}
        names = ordered(set(values.values()))
        numeric = all(is_number(name) for name in names)
        places = {name: float(name) if numeric else i for i, name in enumerate(names)}
        for status, name, marker, colour in (("FINISHED", "trial", "o", BLUE), ("PRUNED", "stopped early", "x", GREY)):
            some = [r for r in shown if r.status == status]
            x = [places[values[r.number]] for r in some]
            axes.plot(x, [r.objective for r in some], ls="", marker=marker, color=colour, label=name)
        if best is not None and best.number in values:
            axes.plot([places[values[best.number]]], [best.objective], **RING, mec=ORANGE, label="best")
        logarithmic = key != "trial" and numeric and scale_axis(axes.xaxis, list(places.values()))
        if not logarithmic and (not numeric or len(names) <= 5):
            axes.set_xticks(list(places.values()), names)
            axes.margins(x=0.2)
        axes.set_xlabel(words(key))
        axes.set_title(f"explains {100 * importance[key]:.0f} %" if key in importance else "")
    finished = {r.number: r.objective for r in shown if r.status == "FINISHED" and r.objective is not None}
    so_far = list(itertools.accumulate(finished.values(), max if largest else min))
    grid[0].step(list(finished), so_far, where="post", color=BLUE, label="best so far")
    if best is not None and best.objective is not None:
        set_heading(picture, f"{label}: {number(best.objective)} in trial {best.number}")
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[::across]:
        axes.set_ylabel(label)
    picture.legend(*grid[0].get_legend_handles_labels(), loc="outside lower left", ncols=4)
    return picture
