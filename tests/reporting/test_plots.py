"""Pictures are drawn from plain numbers, whatever is missing, and touch no global state of matplotlib."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from feedrate.config import ROOT
from feedrate.reporting import plots
from feedrate.reporting.results import JobResult, groups
from feedrate.reporting.sweep_plots import sweep_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _draw(figure: Figure) -> Image.Image:
    picture = BytesIO()
    figure.savefig(picture)
    image = Image.open(picture).convert("L")
    assert np.asarray(image).std() > 1  # something is on it
    return image


def _history(epochs: int) -> dict[str, dict[int, float]]:
    curves = {
        "train/loss": lambda epoch: 1 / epoch,
        "validation/loss": lambda epoch: 1.2 / epoch,
        "validation/accuracy": lambda epoch: 1 - 0.5 / epoch,
        "loader/samples_per_s": lambda epoch: 3000.0 + epoch,
        "loader/wait_pct": lambda epoch: 40.0 / epoch,
        "loader/ceiling_samples_per_s": lambda epoch: 4000.0,
        "compute/ceiling_samples_per_s": lambda epoch: 3500.0,
    }
    return {name: {epoch: value(epoch) for epoch in range(1, epochs + 1)} for name, value in curves.items()}


@pytest.mark.parametrize("epochs", [0, 1, 2, 50])
def test_curves_of_any_number_of_epochs_are_drawn(epochs: int) -> None:
    _draw(plots.loss_curves(_history(epochs)))
    _draw(plots.throughput(_history(epochs)))


def test_the_title_names_the_best_epoch_and_values_that_are_not_finite_are_no_part_of_it() -> None:
    history = {"validation/loss": {1: 0.7, 2: math.nan, 3: 0.25, 4: math.inf, 5: 0.5}}
    figure = plots.loss_curves(history)
    assert figure.axes[0].get_title(loc="left") == "loss: 0.25 in epoch 3, the best"
    _draw(figure)


def test_rates_that_differ_by_more_than_ten_are_drawn_on_a_logarithmic_axis() -> None:
    near, far = _history(3), _history(3)
    far["loader/ceiling_samples_per_s"] = dict.fromkeys(far["loader/samples_per_s"], 90_000.0)
    assert [plots.throughput(values).axes[0].get_yscale() for values in (near, far)] == ["linear", "log"]


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_a_confusion_matrix_shows_every_class(classes: int) -> None:
    counts = np.eye(classes, dtype=int) * 9
    counts[1, 0] = 3
    names = [f"kind {number}" for number in range(classes)]
    figure = plots.confusion_matrix(counts, names)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    assert max(_draw(figure).size) < 2000


def _within(figure: Figure) -> None:
    """Every title lies within the picture."""
    figure.draw_without_rendering()
    titles = [a.get_title(loc=loc) for a in figure.axes for loc in ("left", "center")] + [figure.get_suptitle()]
    shown = [text for text in figure.findobj(Text) if text.get_text() and text.get_text() in titles]
    assert shown
    for text in shown:
        box = text.get_window_extent()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1


@pytest.mark.parametrize("classes", [2, 10, 30])
@pytest.mark.parametrize("name", ["{}", "Golden Retriever number {}"])
def test_the_titles_of_a_confusion_matrix_are_not_cut_off(classes: int, name: str) -> None:
    names = [name.format(number) for number in range(classes)]
    counts = np.ones((classes, classes), dtype=int) * 100
    _within(plots.confusion_matrix(counts, names, "validation after epoch 1200, the best"))


def test_long_titles_of_curves_and_sweeps_are_not_cut_off() -> None:
    curve = {epoch: 1.2345e-4 / epoch for epoch in (1, 1234)}
    _within(plots.loss_curves({"validation/loss": curve, "validation/mae": curve}))
    key = "dataset.root"
    results = [
        JobResult(
            number=i, settings={key: f"/data/{i} {'long ' * 9}"}, command="", status="FINISHED", samples_per_s=5.0 + i
        )
        for i in range(2)
    ]
    _within(sweep_figure(groups(results, [key]), "samples_per_s"))


def test_a_class_without_samples_and_an_empty_matrix_are_drawn() -> None:
    _draw(plots.confusion_matrix([[0, 0], [1, 4]], ["a", "b"]))
    _draw(plots.confusion_matrix([[0, 0], [0, 0]], ["a", "b"]))


def test_no_global_state_of_matplotlib_is_touched(tmp_path: Path) -> None:
    code = """
import sys, matplotlib
from feedrate.reporting import picture, plots
picture.save(plots.loss_curves({"train/loss": {1: 1.0}}), sys.argv[1])
print("matplotlib.pyplot" in sys.modules, matplotlib.rcParams["axes.grid"])
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", code, str(tmp_path / "loss.png")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "False False"
