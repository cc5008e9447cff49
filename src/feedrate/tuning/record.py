"""A tuning's own run, the parent of a run for each setting that was tried; recorded when all is measured.

A uploader at work would take its share of the cores, so there is none before. Sweeps are in sweep.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from feedrate.config import shown_path
from feedrate.tracking.journal import JOB_TAG, PARENT_JOURNAL, PARENT_TAG, Journal
from feedrate.tracking.point import points
from feedrate.tracking.tracker import open_tracker

if TYPE_CHECKING:
    from feedrate.config import TrackingConfig


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A setting.

    Attributes:
        words: names its run.
        settings: key -> value.
        metrics: under the names that single runs use.
        refused: why it cannot be used, empty where it can.
    """

    words: str
    settings: Mapping[str, object]
    metrics: Mapping[str, float]
    refused: str = ""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What is recorded.

    Attributes:
        name: of the parent run.
        folder: where its journal lies; those of the settings in a subfolder each.
        tags: of the parent.
        note: Markdown that its page begins with.
        file: that holds the setting that was found.
        best, tried: what came of it; `best` makes the parent's row in the table of runs.
    """

    name: str
    folder: Path
    tags: Mapping[str, str]
    note: str
    file: Path
    best: Tried
    tried: Sequence[Tried]


def record_tuning(config: TrackingConfig, tuning: Tuning) -> str | None:
    """Sends all of it; the link to the parent's page, None while the store has not answered.

    Args:
        config: the group `tracking`, with a `uri`.

    Raises:
        UserError: the store can never be used.
    """
    own = replace(config, system_metrics=False, log_model=False)
    tracker = open_tracker(own, run_name=tuning.name, run_folder=tuning.folder)
    tracker.tags({**tuning.tags, "feedrate.best": tuning.best.words})
    tracker.params(tuning.best.settings)
    tracker.metrics(points(dict(tuning.best.metrics), 0))
    tracker.note(tuning.note)
    tracker.artifact(tuning.file)
    for number, tried in enumerate(tuning.tried):
        folder = tuning.folder / str(number)
        folder.mkdir()
        _write(Journal(folder), tried, number, tuning.folder, own)
        tracker.close_dead(folder)
    tracker.end("FINISHED")
    return tracker.url


def _write(journal: Journal, tried: Tried, number: int, parent: Path, config: TrackingConfig) -> None:
    tags = {PARENT_TAG: f"{PARENT_JOURNAL}{parent}", JOB_TAG: str(number)}
    journal.begin(tried.words, {**tags, "feedrate.run_folder": shown_path(journal.path.parent)}, config)
    journal.write("params", values={key: str(value) for key, value in tried.settings.items()})
    rows = [[point.name, point.value, point.step, point.time_ms] for point in points(dict(tried.metrics), 0)]
    if rows:
        journal.write("metrics", points=rows)
    journal.write("end", status="FAILED" if tried.refused else "FINISHED", error=tried.refused)
