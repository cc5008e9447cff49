"""Text for people: numbers, durations, commands and tables; and nested settings as flat keys."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any


def number(value: float) -> str:
    """Three or four significant digits: 0.9821, 4.2, 3,210."""
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 999.5:
        return f"{value:,.0f}"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.4g}" if abs(value) < 1 else f"{value:.3g}"


def percent(value: float) -> str:
    """A share in percent, without the sign: 0.8, 42."""
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def fenced(text: str, language: str = "sh") -> str:
    """A block of code in Markdown."""
    return f"```{language}\n{text}\n```"


def wrapped_command(command: str, width: int = 90) -> str:
    """A shell command in lines of `width` characters, each but the last continued by a backslash; words stay whole."""
    lines: list[str] = []
    for word in map(shlex.quote, shlex.split(command)):
        if lines and len(lines[-1]) + len(word) + 7 <= width:  # with a space, the indent and the backslash
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return " \\\n    ".join(lines)


def in_columns(text: str, width: int = 100) -> str:
    """The text with lines of `width` characters at most; words and the rows of tables stay whole."""
    lines = text.splitlines()
    return "\n".join(line if line.startswith("|") else fill(line, width, break_long_words=False) for line in lines)


def duration(seconds: float) -> str:
    """`42 s`, `3 min 5 s`, `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 0, markdown: bool = False) -> str:
    """A table that is aligned in a terminal, too; the first `left` columns to the left, the others to the right."""
    cells = [[cell.replace("|", "\\|") if markdown else cell for cell in row] for row in [head, *rows]]
    widths = [max(3 * markdown, *(len(row[i]) for row in cells)) for i in range(len(head))]
    lines = [
        [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in cells
    ]
    if not markdown:
        lines.insert(1, ["-" * width for width in widths])
        return "\n".join("  ".join(line).rstrip() for line in lines)
    rules = [f":{'-' * (width + 1)}" if i < left else f"{'-' * (width + 1)}:" for i, width in enumerate(widths)]
    written = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([written[0], f"|{'|'.join(rules)}|", *written[1:]])


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"loader": {"batch_size": 64}}` as `{"loader.batch_size": 64}`; empty mappings stay."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flatten(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
