"""The Markdown note that a run's page begins with: the result first, then the figures, then the command.

Text from numbers only; the tracker's `note` records it. MLflow folds it after about three lines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

# What counts as the result, best known first: metric, words, whether it is a share of one.
_RESULTS = (
    ("validation/accuracy", "validation accuracy"),
    ("validation/mae", "validation MAE"),
    ("validation/rmse", "validation RMSE"),
    ("validation/loss", "validation loss"),
    ("train/loss", "training loss"),
)

SLOW = 5  # samples that are named; summary.json has more
_ROWS = (
    ("validation/loss", "validation loss", ""),
    ("validation/top5_accuracy", "validation accuracy, top 5", ""),
    ("validation/rmse", "validation RMSE", ""),
    ("train/loss", "training loss", ""),
    ("loader/samples_per_s", "throughput", " samples/s"),
    ("loader/mb_per_s", "read", " MB/s"),
    ("loader/wait_pct", "time waited for data", " %"),
    ("loader/wait_ms_p95", "wait for a batch, 95th percentile", " ms"),
    ("loader/first_batch_s", "until the first batch", " s"),
    ("loader/ceiling_samples_per_s", "loader alone would reach", " samples/s"),
    ("compute/ceiling_samples_per_s", "training alone would reach", " samples/s"),
)


def run_note(
    metrics: Mapping[str, float],
    *,
    command: str,
    epochs: int,
    best_epoch: int | None = None,
    seconds: float | None = None,
    verdict: str = "",
    slow: Sequence[Mapping[str, Any]] = (),
    error: str = "",
) -> str:
    """The note.

    Args:
        metrics: values under the names of the table of metrics; those that are missing are left out.
        command: what was typed, without secrets.
        epochs: epochs that were finished.
        best_epoch: the epoch that the metrics are of, counted from 1; None: the last one.
        seconds: duration of the training.
        verdict: the loader's verdict in words.
        slow: ID and load_ms of the samples that took longest to load.
        error: why the run stopped early, empty where it did not.
    """
    lines = [headline(metrics, epochs=epochs, best_epoch=best_epoch, seconds=seconds)]
    if error:
        lines.insert(0, f"**Stopped:** {' '.join(error.split())}\n")
    if verdict:
        lines += ["", "```text", verdict, "```"]
    rows = [(words, number(metrics[name]) + unit) for name, words, unit in _ROWS if name in metrics]
    if rows:
        lines += ["", "| | |", "|:--|--:|", *(f"| {words} | {value} |" for words, value in rows)]
    if best_epoch is not None:
        lines += ["", f"Losses and accuracies are those of epoch {best_epoch}, which has the lowest validation loss and"
                      " whose weights are best.pt. MLflow's charts count steps from 0: step 0 is epoch 1."]  # fmt: skip
    if slow:
        named = ", ".join(f"{one['ID']} ({number(one['load_ms'])} ms)" for one in slow[:SLOW])
        lines += ["", f"Slowest samples: {named}"]
    fence = "```" if "```" not in command else "~~~~"
    return "\n".join([*lines, "", f"{fence}sh", command, fence, ""])


def headline(
    metrics: Mapping[str, float], *, epochs: int, best_epoch: int | None = None, seconds: float | None = None
) -> str:
    """Result first: `**0.982 validation accuracy** in epoch 12, the best of 15 · 3,210 samples/s · waited 4 %`."""
    result = next(((metrics[name], words) for name, words in _RESULTS if name in metrics), None)
    among = best_epoch is not None and epochs > 1
    after = f"in epoch {best_epoch}, the best of {epochs}" if among else f"after {epochs} epoch{'s'[: epochs != 1]}"
    if seconds is not None:
        after += f"{' ·' if among else ' in'} {duration(seconds)}"
    parts = [f"**{number(result[0])} {result[1]}** {after}" if result else f"No result {after}"]
    if "loader/samples_per_s" in metrics:
        parts.append(f"{number(metrics['loader/samples_per_s'])} samples/s")
    if "loader/wait_pct" in metrics:
        parts.append(f"waited {number(metrics['loader/wait_pct'])} %")
    return " · ".join(parts)


def number(value: float) -> str:
    """Three or four digits that a person reads: 0.9821, 4.2, 3,210."""
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.4g}" if abs(value) < 1 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """`42 s`, `3 min 5 s`, `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
