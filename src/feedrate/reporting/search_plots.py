"""Pictures of a search: the metric of each trial in their order, and over each thing that was searched.

What they show is decided by search_report.py; colours and sizes are those of plots.py.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from feedrate.reporting.plots import BLUE, DPI, GREY, ORANGE
from feedrate.reporting.run_summary import number
from feedrate.reporting.sweep_ranks import words
from feedrate.reporting.sweep_results import Result, is_number, ordered

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ACROSS = 3


def history(results: Sequence[Result], label: str, best: Result | None, *, largest: bool) -> Figure:
    """A dot for each trial, and the largest or smallest so far as a line.

    Args:
        label: the metric in words.
        best: the trial that is ringed.
        largest: the best is the largest.
    """
    from matplotlib.ticker import MaxNLocator

    figure = _figure(6.6, 3.9)
    axes = figure.subplots()
    pruned, finished = _points(results, "PRUNED"), _points(results, "FINISHED")
    better = max if largest else min
    if finished:
        so_far = [better(list(finished.values())[: i + 1]) for i in range(len(finished))]
        axes.step(list(finished), so_far, where="post", color=BLUE, lw=1.6, label="best so far")
        axes.plot(list(finished), list(finished.values()), "o", color=BLUE, ms=5, label="trial")
    if best is not None and best.objective is not None:
        axes.plot([best.number], [best.objective], "o", mfc="none", mec=ORANGE, mew=1.8, ms=11, zorder=3)
        axes.set_title(f"{label}\nbest: {number(best.objective)} in trial {best.number}", fontsize=10, loc="left")
    if pruned:
        axes.plot(list(pruned), list(pruned.values()), "x", color=GREY, ms=5, label="stopped early")
    axes.set_xlabel("trial")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def slices(
    results: Sequence[Result],
    keys: Sequence[str],
    label: str,
    best: Result | None,
    importance: Mapping[str, float],
    logarithmic: Collection[str],
) -> Figure:
    """The metric over each key, the best trial ringed; in the titles how much of its variation the key explains."""
    across = min(_ACROSS, len(keys))
    down = math.ceil(len(keys) / across)
    figure = _figure(max(4.8, 3.4 * across), 3.2 * down)
    grid = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    for axes, key in zip(grid, keys, strict=False):
        shown = [r for r in results if r.objective is not None]
        names = ordered({r.settings.get(key, "") for r in shown})
        numeric = all(is_number(name) for name in names)
        for status, style in (("PRUNED", {"marker": "x", "color": GREY}), ("FINISHED", {"marker": "o", "color": BLUE})):
            some = [r for r in shown if r.status == status]
            axes.plot([_place(r, key, names, numeric) for r in some], [r.objective for r in some], ls="", ms=5, **style)
        if best is not None:
            place = [_place(best, key, names, numeric)]
            axes.plot(place, [best.objective], "o", mfc="none", mec=ORANGE, mew=1.8, ms=11, zorder=3)
        if not numeric:
            axes.set_xticks(range(len(names)), names)
            axes.set_xlim(-0.5, len(names) - 0.5)
        elif key in logarithmic:
            axes.set_xscale("log")
        elif len(names) <= 5:
            axes.set_xticks([float(name) for name in names], names)
        axes.set_xlabel(words(key))
        if key in importance:
            axes.set_title(f"explains {100 * importance[key]:.0f} %", fontsize=9, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[len(keys) :]:
        axes.set_visible(False)
    for axes in grid[::across]:
        axes.set_ylabel(label)
    return figure


def _points(results: Sequence[Result], status: str) -> dict[int, float]:
    return {r.number: r.objective for r in results if r.status == status and r.objective is not None}


def _place(result: Result, key: str, names: Sequence[str], numeric: bool) -> float:
    text = result.settings.get(key, "")
    return float(text) if numeric else float(names.index(text))


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
