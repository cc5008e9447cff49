"""A sweep's own run in MLflow, the parent of its jobs' runs: opened before the first job, closed after the last.

The jobs record themselves; they learn of their parent through the environment (PARENT_VARIABLE, JOB_VARIABLE).
"""

from __future__ import annotations

import getpass
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from feedrate.config import ROOT
from feedrate.tracking.address import experiment_link, read_address, run_link
from feedrate.tracking.delivery import Delivery
from feedrate.tracking.journal import JOURNAL, Claim
from feedrate.tracking.secrets import without_secrets
from feedrate.tracking.store import open_store, translated_errors
from feedrate.tracking.view import VIEW_KEY

if TYPE_CHECKING:
    from mlflow.entities import Run

    from feedrate.config import TrackingConfig

PARENT_VARIABLE, JOB_VARIABLE = "FEEDRATE_PARENT_RUN", "FEEDRATE_JOB"
PARENT_TAG, JOB_TAG = "mlflow.parentRunId", "feedrate.job"
NOTE_CHARACTERS = 8000  # MLflow's limit of a tag
KILLED_SILENTLY = "its process ended without a word, as SIGKILL or a power cut does"
_MAX_RESULTS = 10_000
_COURIER_S = 10.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a sweep is to do.

    Attributes:
        name: of the parent run.
        sweep_id: hash of the set of jobs; the same command has the same.
        command: starts the sweep again; without secrets.
        folder: the sweep's folder.
        settings: swept key -> its values in words.
        run_id: of the parent run of an earlier start, which is gone on with; empty for a new sweep.
    """

    name: str
    sweep_id: str
    command: str
    folder: Path
    settings: Mapping[str, str]
    run_id: str = ""


class SweepRun:
    """The parent run. After it is open, a store that fails costs a warning, never the sweep."""

    def __init__(self, config: TrackingConfig, plan: Plan, *, owned: Callable[[Path], bool]) -> None:
        """Goes on with the plan's parent run if the store has it, or begins a new one.

        Args:
            config: the group `tracking`, with a `uri`.
            owned: whether a living process owns this run folder.

        Raises:
            UserError: the store does not answer or cannot be used.
        """
        assert config.uri is not None
        self._address = read_address(config.uri, config.artifacts)
        self._client, self._experiment_id = open_store(self._address, config.experiment)
        with translated_errors(self._address):
            found = self._find(plan.run_id) if plan.run_id else None
            self.run_id = self._go_on(found, owned) if found else self._begin(plan)

    @property
    def url(self) -> str:
        """Link to the parent run's page."""
        return run_link(self._address.page, self._experiment_id, self.run_id)

    @property
    def experiment_url(self) -> str:
        """Link to the table of runs."""
        return experiment_link(self._address.page, self._experiment_id, VIEW_KEY)

    def mark(self, folder: Path, status: Literal["FAILED", "KILLED"], error: str, plain: Mapping[str, str]) -> None:
        """Sees to it that a job that did not end well has a run that says so.

        Args:
            folder: the job's run folder.
            status: what became of it; a run that was closed with another one is left alone.
            error: why.
            plain: tags of the run that is made where the job ended before it had one.
        """
        with self._warned("the job's end"):
            self._send(folder, status, without_secrets(error))
            run = next((run for run in self._children() if _folder(run) == folder), None)
            if run is None:
                tags = {PARENT_TAG: self.run_id, "feedrate.run_folder": _relative(folder), **plain}
                run = self._client.create_run(self._experiment_id, tags=tags, run_name=f"job {plain[JOB_TAG]}")
            elif run.info.status not in ("RUNNING", status):
                return
            self._end(str(run.info.run_id), status, error)

    def note(self, markdown: str) -> None:
        """Sets the description that the parent's page begins with."""
        lines = without_secrets(markdown).splitlines()
        # MLflow's pages leave no space between a table's columns
        spaced = "\n".join(line.replace(" |", "\u00a0\u00a0|") if line.startswith("| ") else line for line in lines)
        with self._warned("the sweep's table"):
            self._client.set_tag(self.run_id, "mlflow.note.content", spaced[:NOTE_CHARACTERS])

    def picture(self, name: str) -> str:
        """Markdown that shows an artifact in the note; MLflow's pages serve it beside themselves."""
        return f"![{name}](get-artifact?path={name}&run_uuid={self.run_id})"

    def best(self, settings: str, metrics: Mapping[str, float]) -> None:
        """Makes the parent's row in the table of runs that of its best job.

        Args:
            settings: of that job, in words.
            metrics: its figures, under the names that single runs use.
        """
        with self._warned("the best job"):
            self._client.set_tag(self.run_id, "feedrate.best", settings)
            for name, value in metrics.items():
                self._client.log_metric(self.run_id, name, float(f"{value:.6g}"))

    def artifact(self, path: Path) -> None:
        """Keeps a copy of a file on the parent."""
        with self._warned(path.name):
            self._client.log_artifact(self.run_id, str(path))

    def end(self, status: Literal["FINISHED", "FAILED", "KILLED"], error: str = "") -> None:
        """Closes the parent."""
        with self._warned("the sweep's end"):
            self._end(self.run_id, status, error)

    def _send(self, folder: Path, status: Literal["FAILED", "KILLED"], error: str) -> None:
        """What a job's journal holds, before its courier or after it: either finds then that all is done."""
        _wait_for_courier(folder)
        if (folder / JOURNAL).exists():
            delivery = Delivery(folder, self._address, self._client, self._experiment_id)
            try:
                delivery.deliver()
                delivery.close_silent_run(error[:NOTE_CHARACTERS], status)
            finally:
                delivery.close()

    def _begin(self, plan: Plan) -> str:
        run = self._client.create_run(self._experiment_id, tags=plan_tags(plan), run_name=plan.name)
        for key, values in plan.settings.items():
            self._client.log_param(run.info.run_id, key, without_secrets(values)[:500])
        return str(run.info.run_id)

    def _find(self, run_id: str) -> Run | None:
        from mlflow.exceptions import MlflowException

        try:
            found = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return found if found.info.lifecycle_stage == "active" else None

    def _go_on(self, found: Run, owned: Callable[[Path], bool]) -> str:
        self.run_id = str(found.info.run_id)
        self._client.update_run(self.run_id, status="RUNNING")
        if "feedrate.error" in found.data.tags:
            self._client.delete_tag(self.run_id, "feedrate.error")
        for run in self._children():
            if run.info.status == "RUNNING" and not owned(_folder(run)):
                self._end(str(run.info.run_id), "KILLED", KILLED_SILENTLY)
        return self.run_id

    def _children(self) -> list[Run]:
        condition = f"tags.`{PARENT_TAG}` = '{self.run_id}'"
        return list(self._client.search_runs([self._experiment_id], condition, max_results=_MAX_RESULTS))

    def _end(self, run_id: str, status: str, error: str) -> None:
        if error:
            self._client.set_tag(run_id, "feedrate.error", without_secrets(error)[:NOTE_CHARACTERS])
        self._client.set_terminated(run_id, status)

    @contextmanager
    def _warned(self, what: str) -> Iterator[None]:
        try:
            with translated_errors(self._address):
                yield
        except Exception as error:
            _log.warning("%s could not be recorded: %s", what, error)


def plan_tags(plan: Plan) -> dict[str, str]:
    """Tags of a sweep's parent run."""
    return {
        "mlflow.user": _user(),
        "mlflow.source.name": "src/train.py",
        "mlflow.source.type": "LOCAL",
        "feedrate.sweep_id": plan.sweep_id,
        "feedrate.run_folder": _relative(plan.folder),
        "feedrate.command": plan.command,
    }


def sweep_tags() -> dict[str, str]:
    """Tags of a run that a sweep has started as one of its jobs; empty for any other run."""
    parent = os.environ.get(PARENT_VARIABLE)
    return {PARENT_TAG: parent, JOB_TAG: os.environ.get(JOB_VARIABLE, "")} if parent else {}


def _wait_for_courier(folder: Path) -> None:
    """Until the courier of a job that has ended lets go of its journal: it may yet make the run, or close it."""
    deadline = time.monotonic() + _COURIER_S
    while (folder / JOURNAL).exists() and time.monotonic() < deadline:
        try:
            Claim(folder).release()
        except BlockingIOError:
            time.sleep(0.05)
        else:
            return


def _folder(run: Run) -> Path:
    return ROOT / str(run.data.tags.get("feedrate.run_folder", "nowhere"))


def _relative(path: Path) -> str:
    """The path within the repository, or as it is where it lies elsewhere."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may have no name for its user
        return "unknown"
