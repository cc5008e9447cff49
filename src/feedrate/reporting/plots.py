"""Pictures of a run: loss, throughput and wait over epochs, timeline, confusion matrix.

Each function takes plain numbers and returns a Figure; matplotlib is imported when the first one is drawn.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from feedrate.reporting.picture import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    WIDTH,
    has_fonts,
    new_figure,
    scale_axis,
    set_heading,
    styled,
)
from feedrate.timing.verdict import INPUT_BOUND_PCT

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

History = Mapping[str, Mapping[int, float]]  # metric name -> epoch -> value

MAX_NUMBERED_CLASSES = 40  # above that, counts in the cells are too small to read
LABEL_CHARACTERS = 14


@styled()
def loss_curves(values: History) -> Figure:
    """Training and validation loss over epochs, beside them accuracy or mean absolute error; the best epoch is ringed.

    The best epoch has the lowest validation loss; its weights are kept.
    """
    words = {"loss": "loss", "accuracy": "accuracy", "mae": "mean absolute error"}
    shown = [name for name in words if name == "loss" or f"validation/{name}" in values]
    losses = _finite(values, "validation/loss")
    best = min(losses, key=losses.__getitem__, default=None)
    figure = new_figure(5.2 * len(shown), 3.9)
    for axes, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        _curve(axes, _finite(values, f"train/{name}"), BLUE, "train")
        curve = _finite(values, f"validation/{name}")
        _curve(axes, curve, ORANGE, "validation")
        title = words[name]
        if best in curve:
            ring = {"mfc": "none", "mec": ORANGE, "mew": 1.6, "ms": 10, "ls": "", "zorder": 3}
            axes.plot([best], [curve[best]], "o", **ring, label="lowest validation loss")
            title += f": {curve[best]:.4g} in epoch {best}, the best"
        axes.set_title(title)
        _epochs(axes, words[name])
    return figure


@styled()
def throughput(values: History) -> Figure:
    """Samples per second over epochs, what loader and training would reach alone, and the wait in percent."""
    figure = new_figure(WIDTH, 5.4)
    rate, wait = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    rates: list[float] = []
    for name, label, style, colour in (
        ("loader/ceiling_samples_per_s", "loader alone", "--", GREEN),
        ("compute/ceiling_samples_per_s", "training alone", ":", GREY),
        ("loader/samples_per_s", "measured", "-", BLUE),
    ):
        curve = _finite(values, name)
        rates += curve.values()
        _curve(rate, curve, colour, label, ls=style)
    measured = sorted(_finite(values, "loader/samples_per_s").values())
    median = f": {measured[len(measured) // 2]:,.0f} samples/s (median)" if measured else ""
    rate.set_title(f"throughput{median}")
    if not scale_axis(rate.yaxis, rates):
        rate.set_ylim(0, 1.08 * rate.get_ylim()[1])
    _epochs(rate, "samples/s")
    rate.set_xlabel("")

    curve = _finite(values, "loader/wait_pct")
    wait.fill_between(list(curve), list(curve.values()), color=ORANGE, alpha=0.15, lw=0)
    _curve(wait, curve, ORANGE, "measured")
    wait.axhline(INPUT_BOUND_PCT, color=GREY, lw=0.8, ls=":", label=f"input-bound above {INPUT_BOUND_PCT:.0f} %")
    wait.set_ylim(0, min(100, max([INPUT_BOUND_PCT * 1.5, *(1.1 * value for value in curve.values())])))
    wait.set_title("time waited for the next batch")
    _epochs(wait, "% of the epoch")
    return figure


@styled()
def timeline(rows: Mapping[str, Sequence[tuple[int, int, int]]]) -> Figure:
    """What ran when: a line for each row of `trace.rows_of`; successive batches have two shades."""
    figure = new_figure(WIDTH, 1.2 + 0.42 * len(rows))
    axes = figure.subplots()
    for place, (name, spans) in enumerate(rows.items()):
        colour = {"step": GREEN, "transfer": GREY, "wait": ORANGE}.get(name, BLUE)
        for shade in (0, 1):
            bars = [(begin / 1e6, (end - begin) / 1e6) for begin, end, step in spans if step % 2 == shade]
            axes.broken_barh(bars, (place - 0.38, 0.76), color=colour, alpha=0.95 - 0.4 * shade, lw=0)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("ms")
    axes.set_title("a few steps in the middle of the last epoch")
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    axes.spines["left"].set_visible(False)
    return figure


@styled()
def confusion_matrix(
    matrix: Sequence[Sequence[int]] | np.ndarray, names: Sequence[str], title: str = "validation"
) -> Figure:
    """How often samples of each class are predicted as each class.

    Args:
        matrix: `(C, C)` counts; row: true class, column: predicted class.
        names: the C classes.
        title: which samples these are.
    """
    import numpy as np
    from matplotlib.colors import PowerNorm

    counts = np.asarray(matrix, dtype=np.int64)
    size = len(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    inches = min(max(4.8, 2.2 + 0.28 * size), 13.0)
    figure = new_figure(inches, inches)
    axes = figure.subplots()
    # A root scale: on a linear one the few mistakes of a good model cannot be seen.
    axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    font = 9 if size <= 12 else max(5.0, min(9.0, 0.55 * 72 * (inches - 2.2) / size))
    short = short_names(names)
    longest = max((len(name) for name in short), default=0)
    axes.set_xticks(range(size), short, rotation=90 if longest > 2 else 0, fontsize=font)
    axes.set_yticks(range(size), short, fontsize=font)
    bare(axes)
    by_number = any(name.startswith("#") for name in short)
    axes.set_xlabel("predicted (#: the class's number, see classes.json)" if by_number else "predicted")
    axes.set_ylabel("true")
    right = np.trace(counts) / max(counts.sum(), 1)
    set_heading(figure, f"confusion matrix, {title}: {right:.3f} right")
    if size <= MAX_NUMBERED_CLASSES:
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[row, column] > 0.35 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=font)
    return figure


def bare(axes: Any) -> None:
    """Axes of a matrix: neither ticks, nor grid, nor frame."""
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def short_names(names: Sequence[str]) -> list[str]:
    """Class names as labels that differ: `#7`, the class's number, where a name is empty, ambiguous or has no font."""
    lines = [" ".join(name.split()) for name in names]
    short = [line if len(line) <= LABEL_CHARACTERS else line[: LABEL_CHARACTERS - 1] + "…" for line in lines]
    count = Counter(short)
    return [text if text and count[text] == 1 and has_fonts(text) else f"#{i}" for i, text in enumerate(short)]


def _curve(axes: Any, curve: Mapping[int, float], colour: str, label: str, ls: str = "-") -> None:
    """A line; with dots where there are few epochs, since a line of one point is invisible."""
    if curve:
        marker = "o" if len(curve) <= 20 else ""
        axes.plot(list(curve), list(curve.values()), ls=ls, color=colour, marker=marker, ms=4, label=label)
    if len(curve) == 1:
        axes.set_xlim(min(curve) - 0.5, min(curve) + 0.5)


def _epochs(axes: Any, label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()


def _finite(values: History, name: str) -> dict[int, float]:
    return {epoch: value for epoch, value in sorted(values.get(name, {}).items()) if math.isfinite(value)}
