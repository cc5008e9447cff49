"""Text in pictures is drawn as it stands, in every script that a font is there for, without an error or a warning."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.text import Text
from PIL import Image

from feedrate.reporting import plots
from feedrate.reporting.picture import fonts_for, optional, save
from feedrate.reporting.results import Group, JobResult
from feedrate.reporting.sweep_plots import sweep_figure

MATHEMATICAL = ["Ba$$in", "$a", "b$", r"$\frac{1}$", "a_b^c", "50 %"]
SCRIPTS = ["Кошка", "γάτα", "قطة", "חתול", "naïve", "猫", "แมว", "बिल्ली", "犬 dog"]
ODD = ["a\nb", "tab\tstop", "nul\0", "\udcff", "", "  ", "\u200bjoined", "x" * 5000, "y" * 40 + "1", "y" * 40 + "2"]


def drawn(figure: object, folder: Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(figure, folder / "picture.png")  # type: ignore[arg-type]
    return Image.open(folder / "picture.png")


def confusion(names: list[str]) -> object:
    return plots.confusion_matrix(np.eye(len(names), dtype=int) + 1, names)


def labels(figure: object) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]  # type: ignore[attr-defined]


@pytest.mark.parametrize("names", [MATHEMATICAL, SCRIPTS, ODD, SCRIPTS * 12])
def test_class_names_of_any_kind_are_drawn_without_a_warning(names: list[str], tmp_path: Path) -> None:
    figure = confusion(names)
    assert max(drawn(figure, tmp_path).size) < 2200
    assert len(set(labels(figure))) == len(names)


def test_class_names_are_drawn_as_text_never_as_mathematics(tmp_path: Path) -> None:
    figure = confusion(MATHEMATICAL)
    drawn(figure, tmp_path)
    assert labels(figure) == MATHEMATICAL


def test_names_that_no_font_can_draw_are_replaced_by_their_numbers(tmp_path: Path) -> None:
    figure = confusion(["cat", "\u2fff\ua6a0", "猫\U000e0fff"])  # there is no font of unassigned characters
    drawn(figure, tmp_path)
    assert labels(figure) == ["cat", "#1", "#2"]
    assert "classes.json" in figure.axes[0].get_xlabel()  # type: ignore[attr-defined]


def test_an_installed_font_draws_what_the_usual_one_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cats.ttf"
    _make_font(path, "Feedrate Test", "\ua6a1")
    known = [*font_manager.fontManager.ttflist, font_manager.ttfFontProperty(font_manager.get_font(str(path)))]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", known)
    fonts_for.cache_clear()
    try:
        figure = confusion(["cat", "\ua6a1"])
        drawn(figure, tmp_path)
        assert labels(figure) == ["cat", "\ua6a1"]
        assert "Feedrate Test" in figure.axes[0].get_yticklabels()[1].get_fontfamily()  # type: ignore[attr-defined]
    finally:
        fonts_for.cache_clear()


def test_settings_in_pictures_of_sweeps_are_text_too(tmp_path: Path) -> None:
    results = [
        JobResult(number=i, settings={"dataset.root": name, "optimizer.lr": str(10.0**-i)},
               command="", status="FINISHED", samples_per_s=5.0 + i, objective=i + 1.0)
        for i, name in enumerate(["/a$b$$", "/c$", "/猫\n$"])
    ]  # fmt: skip
    one = [Group({"dataset.root": r.settings["dataset.root"]}, [r]) for r in results]
    for groups in (one, [Group(r.settings, [r]) for r in results]):
        figure = sweep_figure(groups, "samples_per_s")
        drawn(figure, tmp_path)
        assert {"/a$b$$", "/c$"} <= {text.get_text() for text in figure.findobj(Text)}


def test_a_picture_that_fails_costs_a_warning_with_its_name(caplog: pytest.LogCaptureFixture) -> None:
    with optional("plots/waits.png"):
        raise MemoryError
    assert "plots/waits.png could not be drawn (MemoryError)" in caplog.text


def _make_font(path: Path, family: str, character: str) -> None:
    """A font with one character, a square."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 700), (700, 700), (700, 0)):
        pen.lineTo(point)
    pen.closePath()
    square = pen.glyph()
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder([".notdef", "square"])
    font.setupCharacterMap({ord(character): "square"})
    font.setupGlyf({".notdef": square, "square": square})
    font.setupHorizontalMetrics({".notdef": (800, 0), "square": (800, 0)})
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": family, "styleName": "Regular"})
    font.setupOS2(sTypoAscender=800, usWinAscent=800, usWinDescent=200)
    font.setupPost()
    font.save(str(path))
