"""The Markdown that a run's page in MLflow begins with: result, verdict, pictures, command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

from feedrate.system.text import duration, fenced, number, percent, wrapped_command
from feedrate.timing.noise import shown

SLOW = 5  # slowest samples that are listed; summary.json has more
COLUMNS = 96  # of a verdict: with more the page would scroll sideways in a window of 1500 pixels
INDENT = 14 * " "  # of a verdict's continued lines
_RESULTS = {  # metrics, of which the first that is known is the result
    "validation/accuracy": "validation accuracy",
    "validation/mae": "validation MAE",
    "validation/rmse": "validation RMSE",
    "validation/loss": "validation loss",
    "train/loss": "training loss",
}


def run_note(
    metrics: Mapping[str, float],
    *,
    command: str,
    epochs: int,  # finished ones
    best_epoch: int | None = None,  # the epoch of the metrics, counted from 1; None: the last one
    seconds: float | None = None,
    verdict: str = "",
    pictures: str = "",  # Markdown that shows them
    slow: Sequence[Mapping[str, Any]] = (),  # ID and load_ms of the samples that took longest to load
) -> str:
    """The Markdown of a run's page, from metrics by name; those that are missing are left out."""
    parts = [headline(metrics, epochs=epochs, best_epoch=best_epoch, seconds=seconds)]
    unwrapped = verdict.replace("\n" + INDENT, " ").splitlines()
    unwrapped.sort(key=lambda line: line.startswith(("why", "note")))  # MLflow's page folds what follows the remedy
    lines = [fill(line, COLUMNS, subsequent_indent=INDENT, break_on_hyphens=False) for line in unwrapped]
    parts += [fenced("\n".join(lines), "text") if verdict else "", pictures]
    if best_epoch is not None:
        parts.append(
            f"Epoch {best_epoch} has the lowest validation loss; its weights are best.pt. MLflow's charts count steps "
            "from 0: step 0 is epoch 1."
        )
    if slow:
        listed = ", ".join(f"{sample['ID']} ({shown(sample['load_ms'])} ms)" for sample in slow[:SLOW])
        parts.append(f"Slowest samples: {listed}")
    return "\n\n".join(filter(None, [*parts, fenced(wrapped_command(command))])) + "\n"


def headline(
    metrics: Mapping[str, float], *, epochs: int, best_epoch: int | None = None, seconds: float | None = None
) -> str:
    """`**0.982 validation accuracy** in epoch 12, the best of 15 · 42 s · 3,210 samples/s · waited 4.0 %`."""
    name = next((name for name in _RESULTS if name in metrics), None)
    result = f"**{number(metrics[name])} {_RESULTS[name]}**" if name else "No result"
    if best_epoch is not None and epochs > 1:
        parts = [f"{result} in epoch {best_epoch}, the best of {epochs}"]
    else:
        parts = [f"{result} after {epochs} epoch{'' if epochs == 1 else 's'}"]
    if seconds is not None:
        parts.append(duration(seconds))
    if "loader/samples_per_s" in metrics:
        parts.append(f"{number(metrics['loader/samples_per_s'])} samples/s")
    if "loader/wait_pct" in metrics:
        parts.append(f"waited {percent(metrics['loader/wait_pct'])} %")
    return " · ".join(parts)
