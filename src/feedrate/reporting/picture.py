"""The style that all figures share, and figures as PNG files: text as it stands, in every script with a font."""

from __future__ import annotations

import functools
import logging
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from feedrate.system.text import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours (jfly.uni-koeln.de/color), which colour-blind people can tell apart
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6b6b6b"
SMALL = 8  # points: notes, labels of many rows
STYLE: Any = {
    "axes.axisbelow": True, "axes.grid": True, "axes.grid.axis": "y", "grid.color": "#dddddd", "grid.linewidth": 0.6,
    "axes.spines.right": False, "axes.spines.top": False, "axes.titlelocation": "left", "axes.titlesize": 10.5,
    "errorbar.capsize": 3, "figure.constrained_layout.use": True, "figure.dpi": 130, "figure.facecolor": "white",
    "figure.titlesize": 10.5,
    "legend.fontsize": 9, "legend.frameon": False, "lines.linewidth": 1.8, "lines.markersize": 5,
}  # fmt: skip
FONT = "DejaVu Sans"  # comes with matplotlib: Latin, Greek, Cyrillic, Arabic and more
MISSING = "□"
MAX_FONTS = 8  # in one text, for characters that FONT lacks
LOG_ABOVE = 10  # times: values that differ by more are drawn on a logarithmic axis

_log = logging.getLogger("feedrate")
_P = ParamSpec("_P")
_R = TypeVar("_R")


def styled(draw: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorator: `draw` runs with STYLE; matplotlib's global settings are restored afterwards."""

    @functools.wraps(draw)
    def drawn(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        import matplotlib as mpl

        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


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


@styled
def save(figure: Figure, path: Path) -> None:
    """Writes `figure` to `path`. Characters that no installed font has become `□`.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.text import Text

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for text in figure.findobj(Text):
            if text.get_text():
                content, fonts = drawable(text.get_text())
                text.set(text=content, fontfamily=[FONT, *fonts], parse_math=False, usetex=False)
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
    return MISSING not in drawable(text)[0]


def drawable(text: str) -> tuple[str, tuple[str, ...]]:
    """`text` with `□` for what cannot be drawn and without invisible marks; fonts for what FONT lacks."""
    printed = "".join(c if c.isprintable() or c == "\n" else _replacement(c) for c in text)
    fonts, lacking = fonts_for(frozenset(printed))
    return "".join(MISSING if c in lacking else c for c in printed), fonts


def _replacement(character: str) -> str:
    return " " if character.isspace() else "" if unicodedata.category(character) == "Cf" else MISSING


@functools.lru_cache(maxsize=1024)
def fonts_for(characters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Names of installed fonts for characters that FONT lacks, and the characters that none of them has."""
    from matplotlib import get_data_path
    from matplotlib.font_manager import fontManager

    own = get_data_path()
    lacking = {c for c in characters if c != "\n" and not _has(f"{own}/fonts/ttf/DejaVuSans.ttf", c)}
    found: list[str] = []
    for font in fontManager.ttflist:
        if not lacking or len(found) == MAX_FONTS:
            break
        if font.style == "normal" and not font.fname.startswith(own):  # its own ones: symbols, placeholders
            covered = {c for c in lacking if _has(font.fname, c)}
            lacking -= covered
            found += [font.name] if covered else []
    return tuple(found), frozenset(lacking)


def _has(path: str, character: str) -> bool:
    from matplotlib.font_manager import get_font

    try:
        font: Any = get_font(path)
    except (OSError, RuntimeError):  # removed since matplotlib listed it, or damaged
        return False
    return bool(font.scalable and font.get_char_index(ord(character)))
