"""What a run can record: the interface that training sees, and the tracker that records nothing.

How it comes to MLflow is in journal_tracker.py, which is imported only where there is an address.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from feedrate.config import TrackingConfig
    from feedrate.tracking.point import Point
    from feedrate.tracking.uploader_process import UploaderProcess

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker:
    """Interface of all trackers. No method may be called inside the timed loop.

    No method raises because of a store, and none but `end` waits for one.
    """

    @property
    def active(self) -> bool:
        """Whether anything is recorded."""
        return False

    @property
    def run_id(self) -> str | None:
        """MLflow's identifier of the run, None where nothing is recorded, or while the store has not answered."""
        return None

    @property
    def url(self) -> str | None:
        """Link to this run's page, None where it has none (yet)."""
        return None

    @property
    def experiment_url(self) -> str | None:
        """Link to the table of runs, with the columns that matter; None as `url`."""
        return None

    def params(self, values: Mapping[str, object]) -> None:
        """Record settings under dotted names (`loader.batch_size`). A nested mapping is flattened."""

    def tags(self, values: Mapping[str, str]) -> None:
        """Record words about the run; a later value replaces an earlier one."""

    def last_step(self, metric: str) -> int:
        """The highest step that is recorded of a metric, -1 if there is none: where a run goes on."""
        return -1

    def close_dead(self, folder: Path) -> None:
        """Bring the record of another run to its end, whose own process is gone without a word: KILLED."""

    def metrics(self, points: Sequence[Point]) -> None:
        """Record measured values, rounded to 6 significant digits.

        Those that are not finite are left out, counted, and named in the tag `feedrate.non_finite`.
        """

    def dataset(self, name: str, digest: str, partition: str, samples: int, source: str) -> None:
        """Record which samples went in. Metadata only.

        Args:
            name: as people call the data set.
            digest: fingerprint of the data set, any length; the table shows its first 8 characters.
            partition: train, validation or test.
            samples: number of samples of this partition.
            source: folder or URI; for computed samples the class's name.
        """

    def artifact(self, path: Path, folder: str = "") -> None:
        """Keep a copy of a file, or of all that a folder holds, under `folder`, as it is when it is sent.

        Secrets in it are not masked.
        """

    def text(self, text: str, name: str) -> None:
        """Keep `text` as the file `name`; secrets are masked."""

    def figure(self, figure: Figure, name: str) -> None:
        """Keep a picture as the file `name` (ending in .png)."""

    def note(self, markdown: str) -> None:
        """Set the description that the run's page begins with."""

    def model(self, module: nn.Module, example: Tensor) -> None:
        """Keep a model in MLflow's own form if `tracking.log_model` is set. Takes seconds.

        A model that cannot be exported is a warning and a tag, `feedrate.model_error`.

        Args:
            module: any device and mode; it is not changed.
            example: one batch as the model takes it, of at least 2 samples (with one the size is fixed to 1).
        """

    def end(self, status: Status, error: str = "") -> None:
        """Close the run, and wait until its record is in the store: as long as there is progress, else 10 s (30 s for
        an SQLite file, 3 s of a run that was KILLED). Later calls do nothing, so an exit handler may call it again.
        """


class NullTracker(Tracker):
    """Records nothing (`tracking=none`)."""


def start_uploader(config: TrackingConfig) -> UploaderProcess | None:
    """Begins to open the store in a process of its own, while training gets ready; None where nothing is recorded."""
    if config.uri is None:
        return None
    from feedrate.tracking.uploader_process import UploaderProcess

    return UploaderProcess(config)


def open_tracker(
    config: TrackingConfig,
    *,
    run_name: str,
    run_folder: Path,
    run_id: str | None = None,
    uploader: UploaderProcess | None = None,
) -> Tracker:
    """Begin to record a run where `config` says.

    Args:
        config: the group `tracking`. Its `uri` None: nothing is recorded and mlflow is not imported.
        run_name: used unless `config.run_name` is set.
        run_folder: the run's own folder, noted so that one is found from the other. One with a journal goes on.
        run_id: a run without a journal to go on with, None for a new one.
        uploader: from `start_uploader`; None: one is started now.

    Raises:
        UserError: the settings are wrong, so that the run could never be recorded.
    """
    if config.uri is None:
        return NullTracker()
    from feedrate.tracking.journal_tracker import JournalTracker

    uploader = uploader or start_uploader(config)
    assert uploader is not None
    name = config.run_name or run_name
    return JournalTracker(config, uploader, run_name=name, run_folder=run_folder, run_id=run_id)
