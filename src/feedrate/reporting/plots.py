"""Pictures of a run: loss, throughput and wait over epochs, confusion matrix, predicted against true.

Plain numbers go in, Figures come out that no window and no global state knows; matplotlib is imported when
one is drawn. Colours: Okabe and Ito's (jfly.uni-koeln.de/color), which colour-blind people can tell apart.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from feedrate.tracking.point import Point

History = Mapping[str, Mapping[int, float]]  # metric name -> epoch -> value

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6b6b6b"
DPI = 130
MAX_NUMBERED_CLASSES = 40  # above that, counts in the cells are too small to read
LABEL_CHARACTERS = 14
LEGEND_LINES, LEGEND_CHARACTERS = 12, 80
INPUT_BOUND_PCT = 10.0  # as in the verdict


def history(points: Iterable[Point]) -> dict[str, dict[int, float]]:
    """Points as metric name -> step -> value; the last value of a step counts."""
    values: dict[str, dict[int, float]] = {}
    for point in points:
        values.setdefault(point.name, {})[point.step] = point.value
    return values


def loss_curves(values: History) -> Figure:
    """Training and validation loss over epochs, and beside it accuracy (or MAE) where there is one.

    The epoch with the lowest validation loss, whose weights are kept, is ringed.
    """
    measures = [("loss", "loss")]
    measures += [("accuracy", "accuracy")] if "validation/accuracy" in values else []
    measures += [("mae", "mean absolute error")] if "validation/mae" in values else []
    losses = _finite(values.get("validation/loss", {}))
    epoch = min(losses, key=losses.__getitem__, default=None)
    figure = _figure(5.2 * len(measures), 3.9)
    row = figure.subplots(1, len(measures), squeeze=False)[0]
    for axes, (key, label) in zip(row, measures, strict=True):
        for name, colour in (("train", BLUE), ("validation", ORANGE)):
            if curve := _finite(values.get(f"{name}/{key}", {})):
                axes.plot(list(curve), list(curve.values()), **_line(curve, colour), label=name)
        curve = _finite(values.get(f"validation/{key}", {}))
        if epoch in curve:
            axes.plot([epoch], [curve[epoch]], "o", mfc="none", mec=ORANGE, mew=1.6, ms=10, zorder=3)
            which = "best validation" if key == "loss" else "validation"
            also = "" if key == "loss" else "\n(lowest loss)"
            axes.set_title(f"{label}: {which} {curve[epoch]:.4g} in epoch {epoch}{also}")
        else:
            axes.set_title(label)
        _epochs(axes, label)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    return figure


def throughput(values: History) -> Figure:
    """Samples per second over epochs, what loader and training would reach alone, and the wait in percent."""
    figure = _figure(6.6, 5.4)
    rate, wait = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    for name, label, style, colour in (
        ("loader/ceiling_samples_per_s", "loader alone", "--", GREEN),
        ("compute/ceiling_samples_per_s", "training alone", ":", GREY),
        ("loader/samples_per_s", "measured", "-", BLUE),
    ):
        if curve := _finite(values.get(name, {})):
            rate.plot(list(curve), list(curve.values()), **(_line(curve, colour) | {"ls": style}), label=label)
    measured = list(_finite(values.get("loader/samples_per_s", {})).values())
    median = f": {sorted(measured)[len(measured) // 2]:,.0f} samples/s (median)" if measured else ""
    rate.set_title(f"throughput{median}")
    rate.set_ylim(0, 1.08 * rate.get_ylim()[1])
    _epochs(rate, "samples/s")
    rate.set_xlabel("")
    rate.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if len(rate.get_lines()) > 1:
        rate.legend(frameon=False, loc="best")

    curve = _finite(values.get("loader/wait_pct", {}))
    if curve:
        wait.fill_between(list(curve), list(curve.values()), color=ORANGE, alpha=0.15, lw=0)
        wait.plot(list(curve), list(curve.values()), **_line(curve, ORANGE))
    top = max([INPUT_BOUND_PCT * 1.5, *(1.1 * value for value in curve.values())])
    wait.set_ylim(0, min(top, 100))
    _epochs(wait, "% of the epoch")
    wait.axhline(INPUT_BOUND_PCT, color=GREY, lw=0.8, ls=":")
    wait.annotate(
        "input-bound above 10 %",
        (1, INPUT_BOUND_PCT),
        xycoords=("axes fraction", "data"),
        xytext=(-4, 3),
        textcoords="offset points",
        ha="right",
        color=GREY,
        fontsize=8,
    )
    wait.set_title("time waited for the next batch", fontsize=rate.title.get_fontsize())
    return figure


def timeline(rows: Mapping[str, Sequence[tuple[int, int, int]]], title: str = "") -> Figure:
    """Who did what when: a line for each row of `timing.trace.rows_of`; batches take turns in two shades."""
    figure = _figure(10.0, 1.2 + 0.42 * len(rows))
    axes = figure.subplots()
    for place, (name, spans) in enumerate(rows.items()):
        colour = {"step": GREEN, "transfer": GREY, "wait": ORANGE}.get(name, BLUE)
        for shade in (0, 1):
            bars = [(begin / 1e6, (end - begin) / 1e6) for begin, end, step in spans if step % 2 == shade]
            axes.broken_barh(bars, (place - 0.38, 0.76), color=colour, alpha=0.95 - 0.4 * shade, lw=0)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("ms")
    axes.set_title(title or "a few steps in the middle of the last epoch", loc="left", fontsize=10.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def waits(wait_ms: Sequence[float] | np.ndarray, load_ms: Sequence[float] | np.ndarray) -> Figure:
    """What each step waited, and what making its batch took in its worker; up to 4,000 dots, evenly taken."""
    import numpy as np

    from feedrate.reporting.run_summary import number

    figure = _figure(7.6, 5.0)
    panels = figure.subplots(2, 1, sharex=True)
    for axes, values, label, colour in zip(
        panels, (wait_ms, load_ms), ("wait of a step, ms", "load of its batch, ms"), (ORANGE, BLUE), strict=True
    ):
        every = max(1, -(-len(values) // 4000))
        axes.plot(range(0, len(values), every), values[::every], ".", color=colour, ms=4, alpha=0.7, mew=0)
        if len(values):
            p50, p95 = np.percentile(values, [50, 95])
            text = f"{label}: median {number(p50)}, 95th percentile {number(p95)}"
            axes.set_title(text, loc="left", fontsize=10.5)
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", color="#dddddd", lw=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[1].set_xlabel("step")
    return figure


def confusion_matrix(
    matrix: Sequence[Sequence[int]] | np.ndarray, names: Sequence[str], title: str = "validation"
) -> Figure:
    """Which classes are taken for which.

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
    figure = _figure(inches + 1.0, inches)
    axes = figure.subplots()
    # A root scale: on a linear one the few mistakes of a good model cannot be seen.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    colour_bar = figure.colorbar(
        image, ax=axes, shrink=0.75, pad=0.02, aspect=30, ticks=[0, 0.01, 0.05, 0.1, 0.25, 0.5, 1]
    )
    colour_bar.ax.set_yticklabels(["0", "1 %", "5 %", "10 %", "25 %", "50 %", "100 %"])
    colour_bar.set_label("share of the true class")
    colour_bar.outline.set_visible(False)
    font = 9 if size <= 12 else max(5.0, min(9.0, 0.55 * 72 * (inches - 2.2) / size))
    short, legend = _labels(names)
    upright = max((len(name) for name in short), default=0) > 2
    axes.set_xticks(range(size), short, rotation=90 if upright else 0, fontsize=font)
    axes.set_yticks(range(size), short, fontsize=font)
    axes.tick_params(length=0)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if legend:
        figure.supxlabel(legend, x=0.01, ha="left", fontsize=7, color=GREY)
    right = np.trace(counts) / max(counts.sum(), 1)
    words = fitted(f"confusion matrix, {title}: {right:.3f} right", inches + 0.8, 11)
    figure.suptitle(words, x=0.01, ha="left", fontsize=11)
    left = 1.2 + max((len(name) for name in short), default=0) * 0.6 * font / 72
    axes.set_title(fitted(_worst(counts, short), inches + 1 - left, 8), loc="left", fontsize=8, color=GREY)
    if size <= MAX_NUMBERED_CLASSES:
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[row, column] > 0.35 else "black"
            text = str(counts[row, column])
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=min(font, 9))
    for side in axes.spines.values():
        side.set_visible(False)
    return figure


def predicted_against_true(
    predicted: Sequence[float] | np.ndarray, true: Sequence[float] | np.ndarray, label: str = "label"
) -> Figure:
    """One dot per sample of a regression; on the line they are right. Up to 5,000 dots, evenly taken."""
    import numpy as np

    x, y = np.asarray(true, dtype=float).ravel(), np.asarray(predicted, dtype=float).ravel()
    keep = np.isfinite(x) & np.isfinite(y)
    x, y = x[keep], y[keep]
    figure = _figure(5.0, 4.8)
    axes = figure.subplots()
    step = max(1, -(-len(x) // 5000))
    axes.plot(x[::step], y[::step], ".", color=BLUE, alpha=0.35, ms=5, mew=0)
    if len(x):
        ends = [min(x.min(), y.min()), max(x.max(), y.max())]
        axes.plot(ends, ends, color=GREY, lw=1, ls="--")
        axes.set_title(f"mean absolute error {np.abs(x - y).mean():.4g}")
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xlabel(f"true {label}")
    axes.set_ylabel(f"predicted {label}")
    return figure


def fitted(text: str, inches: float, points: float) -> str:
    """`text` in up to four lines of a width; matplotlib's own wrapping takes a `$` for mathematics.

    Args:
        points: size of the font, whose characters are taken to be 0.55 as wide on average.
    """
    width = max(20, int(72 * inches / (0.55 * points)))
    return "\n".join(fill(line, width, max_lines=4, placeholder=" …") for line in text.splitlines())


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")


def _line(curve: Mapping[int, float], colour: str) -> dict[str, Any]:
    """A line; dots where there are few epochs, since a line of one point is invisible."""
    return {"color": colour, "lw": 1.8, "marker": "o" if len(curve) <= 20 else "", "ms": 4}


def _epochs(axes: Any, label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    steps = {step for line in axes.get_lines() for step in line.get_xdata()}
    if len(steps) == 1:
        axes.set_xlim(min(steps) - 0.5, min(steps) + 0.5)
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.grid(axis="y", color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.title.set_fontsize(10.5)


def _finite(curve: Mapping[int, float]) -> dict[int, float]:
    from math import isfinite

    return {step: value for step, value in sorted(curve.items()) if isfinite(value)}


def _labels(names: Sequence[str]) -> tuple[list[str], str]:
    """Short labels, all different, and a legend of the classes that are labelled by their numbers.

    These are names that no font can draw, empty ones, those that are equal once they are shortened, and, beside any of
    these, names that look like such a number (`#1`).
    """
    from feedrate.reporting.picture import has_fonts

    lines = [" ".join(name.split()) for name in names]
    short = [line if len(line) <= LABEL_CHARACTERS else line[: LABEL_CHARACTERS - 1] + "…" for line in lines]
    count, half = Counter(short), LABEL_CHARACTERS // 2
    short = [f"{line[: half - 1]}…{line[-half:]}" if count[s] > 1 else s for s, line in zip(short, lines, strict=True)]
    count = Counter(short)
    numbered = [i for i, text in enumerate(short) if not text or count[text] > 1 or not has_fonts(names[i])]
    if numbered:
        numbered = sorted({*numbered, *(i for i, text in enumerate(short) if re.fullmatch(r"#\d+", text))})
    legend = [f"#{i} = {_written(names[i])}" for i in numbered[:LEGEND_LINES]]
    if len(numbered) > LEGEND_LINES:
        legend.append(f"and {len(numbered) - LEGEND_LINES} more, by their numbers in classes.json")
    for i in numbered:
        short[i] = f"#{i}"
    return short, "\n".join(legend)


def _written(name: str) -> str:
    """A name with what cannot be drawn as Python writes it: `\\u732b`."""
    from feedrate.reporting.picture import has_fonts

    text = "".join(c if c.isprintable() and has_fonts(c) else c.encode("unicode_escape").decode() for c in name)
    return f'"{text if len(text) <= LEGEND_CHARACTERS else text[: LEGEND_CHARACTERS - 1] + "…"}"'


def _worst(counts: np.ndarray, names: Sequence[str]) -> str:
    """The three most frequent mistakes in words."""
    import numpy as np

    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:3]
    pairs = [divmod(int(place), len(counts)) for place in order]
    said = [f"{names[t]} as {names[p]} ({wrong[t, p]})" for t, p in pairs if wrong[t, p]]
    return "most frequent mistakes: " + ", ".join(said) if said else "no mistakes"
