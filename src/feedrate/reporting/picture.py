"""The style that all figures share, and figures as PNG files: text as it stands, in every script with a font."""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from feedrate.system.text import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours (jfly.uni-koeln.de/color), which colour-blind people can tell apart
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6b6b6b"
WIDTH = 5.8  # inches: as much as MLflow's run page has room for in a window of 1500 pixels
STYLE: Any = {
    "axes.axisbelow": True, "axes.grid": True, "axes.grid.axis": "y", "grid.color": "#dddddd", "grid.linewidth": 0.6,
    "axes.spines.right": False, "axes.spines.top": False, "axes.titlelocation": "left", "axes.titlesize": 10.5,
    "errorbar.capsize": 3, "figure.constrained_layout.use": True, "figure.dpi": 130, "figure.facecolor": "white",
    "figure.titlesize": 10.5, "text.parse_math": False,
    "legend.fontsize": 9, "legend.frameon": False, "lines.linewidth": 1.8, "lines.markersize": 5,
}  # fmt: skip
FONT = "DejaVu Sans"  # comes with matplotlib: Latin, Greek, Cyrillic, Arabic and more
MISSING = "□"
LOG_ABOVE = 10  # times: values that differ by more are drawn on a logarithmic axis

_log = logging.getLogger("feedrate")


@contextmanager
def styled() -> Iterator[None]:
    """Figures get STYLE within it, or in a function that it decorates; matplotlib's global settings stay."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        yield


def new_figure(width: float, height: float) -> Figure:
    """A figure of a size in inches, without pyplot and its global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def scale_axis(axis: Any, values: Sequence[float]) -> bool:
    """Labels an axis with plain numbers; logarithmic, and True, where values are positive and differ by a lot."""
    from matplotlib.ticker import LogLocator, NullFormatter

    logarithmic = len(values) > 0 and min(values) > 0 and max(values) > LOG_ABOVE * min(values)
    if logarithmic:
        getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(values) < 100 * min(values) else (1,)))
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(lambda value, _: number(value))
    return logarithmic


def fitted(text: str, inches: float, points: float) -> str:
    """`text` in lines of a width, at most four for each line of `text`; a character is taken as 0.55 `points` wide."""
    width = max(20, int(72 * inches / (0.55 * points)))
    return "\n".join(fill(line, width, max_lines=4, placeholder=" …") for line in text.splitlines())


def set_heading(figure: Figure, text: str) -> None:
    """The title of a whole figure, wrapped to its width."""
    figure.suptitle(fitted(text, figure.get_figwidth() - 0.2, 10.5), x=0.01, ha="left")


@styled()
def save(figure: Figure, path: Path) -> None:
    """Writes `figure` to `path`. Characters that cannot be drawn become `□`.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.text import Text

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for text in figure.findobj(Text):
            if content := text.get_text():
                content = "".join(c if c.isprintable() or c == "\n" else MISSING for c in content)
                text.set(text=content, fontfamily=[FONT, *fonts_for(frozenset(content))[0]])
        figure.savefig(path, dpi=figure.dpi)


@contextmanager
def optional(name: str) -> Iterator[None]:
    """An error while a picture is drawn becomes a warning with the picture's name."""
    try:
        yield
    except Exception as error:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        _log.warning("note: the picture %s could not be drawn (%s); everything else is recorded", name, text)


def has_fonts(text: str) -> bool:
    """Whether every character of `text` can be drawn."""
    return not fonts_for(frozenset(text))[1]


@functools.lru_cache(maxsize=1024)
def fonts_for(characters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Names of installed fonts for characters that FONT lacks, and the characters that none of them has."""
    from matplotlib import get_data_path
    from matplotlib.font_manager import fontManager, get_font

    own = get_data_path()
    lacking = characters - {"\n", *map(chr, get_font(f"{own}/fonts/ttf/DejaVuSans.ttf").get_charmap())}
    found: list[str] = []
    for font in fontManager.ttflist:
        if lacking and font.style == "normal" and not font.fname.startswith(own):  # its own: symbols, placeholders
            try:
                covered = lacking & set(map(chr, get_font(font.fname).get_charmap()))
            except (OSError, RuntimeError):  # removed since matplotlib listed it, or damaged
                continue
            lacking -= covered
            found += [font.name] if covered else []
    return tuple(found), lacking
