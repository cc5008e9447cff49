"""Words and figures of a sweep's settings, for its table and pictures."""

from __future__ import annotations

from collections.abc import Mapping

from feedrate.reporting.sweep_results import Group, words
from feedrate.system.text import number
from feedrate.timing.noise import rounded


def figure(group: Group, name: str) -> str:
    """A figure with as many digits as its noise leaves; over several jobs with its standard deviation; empty: none."""
    measured, spread = group.measured(name), group.spread(name)
    if measured is None:
        return ""
    unsure = (spread or 0.0) / 20
    if name.endswith("_pct") or name == "free_cores":
        digits = 1 if name == "free_cores" or measured.value < 10 else 0
        texts = [f"{value:.{digits}f}" for value in (measured.value, spread or 0.0)]
    elif name in ("best", "best_epoch", "objective"):
        texts = [rounded(measured.value, unsure) if unsure else number(measured.value), rounded(spread or 0.0, unsure)]
    else:
        texts = [str(measured), rounded(spread or 0.0, unsure)]
    return texts[0] if spread is None else " ± ".join(texts)


def chosen_words(chosen: Mapping[str, str]) -> str:
    """`workers 2, batch size 128`."""
    return ", ".join(f"{words(key)} {short(value)}" for key, value in chosen.items()) or "the only setting"


def words_of_metric(metric: str) -> str:
    """`validation accuracy` for validation/accuracy."""
    return metric.replace("/", " ").replace("_", " ") or "validation metric"


def short(text: str) -> str:
    """The text of a setting; a number with many decimal places is rounded."""
    try:
        return number(float(text)) if "." in text and len(text) > 7 else text
    except ValueError:
        return text
