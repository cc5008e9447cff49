"""Figures as PNG files: text as it stands, a font for every character that has one, no warnings.

What is drawn is decided by the modules that make figures, such as plots.py.
"""

from __future__ import annotations

import functools
import logging
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FONT = "DejaVu Sans"  # comes with matplotlib: Latin, Greek, Cyrillic, Arabic and more
MISSING = "□"
_FALLBACKS = 8  # fonts for characters that FONT lacks

_log = logging.getLogger("feedrate")


def save(figure: Figure, path: Path) -> None:
    """Writes `figure` to `path`. Characters that no installed font has become `□`.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.axis import Axis
    from matplotlib.text import Text
    from matplotlib.ticker import FixedFormatter, FuncFormatter

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        numbers: set[Any] = set()  # written by matplotlib: powers of a logarithmic axis are mathematics
        for axis in figure.findobj(Axis):
            if not isinstance(axis.get_major_formatter(), (FixedFormatter, FuncFormatter)):
                numbers |= {*axis.get_majorticklabels(), *axis.get_minorticklabels(), axis.get_offset_text()}
        for text in figure.findobj(Text):
            if text not in numbers and (content := text.get_text()):
                content = plain(content)
                fonts, lacking = fonts_for(frozenset(content))
                text.set_text("".join(MISSING if c in lacking else c for c in content))
                text.set_fontfamily([FONT, *fonts])
                text.set_parse_math(False)
                text.set_usetex(False)
        figure.savefig(path, dpi=figure.dpi)


@contextmanager
def optional(name: str) -> Iterator[None]:
    """A picture that cannot be made costs a warning with its name."""
    try:
        yield
    except Exception as error:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        _log.warning("note: the picture %s could not be drawn (%s); everything else is recorded", name, text)


def plain(text: str) -> str:
    """`text` without invisible characters; each kind of space as a space, others that cannot be printed as `□`."""
    return "".join(map(_printed, text))


def has_fonts(text: str) -> bool:
    """Whether every character of `text` can be drawn."""
    cleaned = plain(text)
    return MISSING not in cleaned and not fonts_for(frozenset(cleaned))[1]


@functools.lru_cache(maxsize=1024)
def fonts_for(characters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Names of installed fonts for characters that FONT lacks, and the characters that none of them has."""
    from matplotlib import get_data_path
    from matplotlib.font_manager import fontManager

    lacking = {c for c in characters if c != "\n" and not _has(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", c)}
    found: dict[str, None] = {}
    for font in fontManager.ttflist if lacking else ():
        if font.style != "normal" or font.fname.startswith(get_data_path()):  # the latter: symbols, placeholders
            continue
        if covered := {c for c in lacking if _has(font.fname, c)}:
            found[font.name] = None
            lacking -= covered
        if not lacking or len(found) == _FALLBACKS:
            break
    return tuple(found), frozenset(lacking)


def _has(font: str, character: str) -> bool:
    opened = _open(font)
    return opened is not None and bool(opened.get_char_index(ord(character)))


@functools.lru_cache(maxsize=32)
def _open(font: str) -> Any:
    from matplotlib.ft2font import FT2Font

    try:
        opened = FT2Font(font)
    except (OSError, RuntimeError):  # removed since matplotlib listed it, or damaged
        return None
    return opened if opened.scalable else None


def _printed(character: str) -> str:
    kind = unicodedata.category(character)
    if character == "\n" or kind[0] not in "CZ":
        return character
    if kind == "Cf":  # joiners, marks of direction
        return ""
    return " " if kind[0] == "Z" or character in "\t\r\v\f" else MISSING
