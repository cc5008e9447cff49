"""What a sweep leaves in its folder and on its parent run: the table, the CSV and the pictures of all its jobs.

Their contents are made in sweep_table.py and sweep_plots.py; a search has a report of its own, search_report.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feedrate.reporting.picture import optional, save
from feedrate.reporting.sweep_plots import MEASURES, METRIC, sweep_figure
from feedrate.reporting.sweep_ranks import is_about_speed
from feedrate.reporting.sweep_results import Result, figures, groups
from feedrate.reporting.sweep_table import as_csv, best_job, markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Report:
    """The report of a sweep over every combination.

    Args:
        keys: what is swept.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = list(keys)

    def measured(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """A finished run's figures, as `Result` names them."""
        return figures(summary)

    def table(self, results: Sequence[Result], rows: int | None = None, pictures: str = "") -> str:
        """Markdown, the best setting first.

        Args:
            rows: how many jobs the table shows, the best first; None: all, in their order.
            pictures: Markdown that stands before the table.
        """
        return markdown(results, self.keys, rows, pictures)

    def best(self, results: Sequence[Result]) -> tuple[str, dict[str, float]]:
        """The best job's settings in words, and its metrics; nothing where none finished."""
        return best_job(results, self.keys)

    def csv(self, results: Sequence[Result]) -> str:
        """A row for each job."""
        return as_csv(results, self.keys)

    def figures(self, results: Sequence[Result]) -> dict[str, Figure]:
        """Pictures by name, without suffix."""
        found = groups(results, self.keys)
        wanted = {"metric": METRIC} if not is_about_speed(self.keys) else {}
        wanted |= {measure: measure for measure in MEASURES}
        shown = {name: measure for name, measure in wanted.items() if any(g.mean(measure) is not None for g in found)}
        return {name: sweep_figure(found, measure) for name, measure in shown.items()}

    def write(self, results: Sequence[Result], folder: Path) -> list[Path]:
        """sweep.md, sweep.csv and the pictures; returns their paths."""
        texts = {"sweep.md": self.table(results), "sweep.csv": self.csv(results)}
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        paths = [folder / name for name in texts]
        with optional("of the sweep"):
            for name, figure in self.figures(results).items():
                save(figure, folder / f"{name}.png")
                paths.append(folder / f"{name}.png")
        return paths
