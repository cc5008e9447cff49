"""The parent run of a sweep whose store is away: kept as a journal in the sweep's folder, as a run's record is.

Its run is made when its first job's record is sent, or by src/sync.py; a store that answers is used by sweep.py.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from feedrate.errors import UserError
from feedrate.tracking.delivery import PARENT_JOURNAL
from feedrate.tracking.journal import Journal, run_id_of
from feedrate.tracking.secrets import masked, without_secrets
from feedrate.tracking.store import StoreFault
from feedrate.tracking.sweep import Plan, SweepRun, plan_tags

if TYPE_CHECKING:
    from feedrate.config import TrackingConfig

_log = logging.getLogger("feedrate.tracking")


def open_sweep(config: TrackingConfig, plan: Plan, *, owned: Callable[[Path], bool]) -> SweepRun | KeptSweep:
    """The parent run in its store, or as a journal where that is away.

    Raises:
        UserError: the store can never be used.
    """
    from feedrate.tracking.backlog import Sender, destination

    try:
        if plan.run_id.startswith(PARENT_JOURNAL):  # of an earlier start, when the store was away
            Sender().send(plan.folder, destination(plan.folder, config.uri))
            plan = replace(plan, run_id=run_id_of(plan.folder))
        return SweepRun(config, plan, owned=owned)
    except StoreFault as fault:
        said = str(fault).splitlines()[0].rstrip(".")
        print(f"note: {said}: the sweep goes on; its record is kept in its folder, and what is left is sent by\n"
              f"  python src/sync.py {plan.folder}", flush=True)  # fmt: skip
        return KeptSweep(config, plan)


class KeptSweep:
    """The same calls as SweepRun's; none of them waits for a store but `end`, for 5 s."""

    url, experiment_url = None, None

    def __init__(self, config: TrackingConfig, plan: Plan) -> None:
        self.run_id = f"{PARENT_JOURNAL}{plan.folder}"
        self._folder = plan.folder
        self._journal = Journal(plan.folder)
        if self._journal.existed:
            self._journal.write("resume")
            return
        self._journal.write(
            "begin", journal=uuid.uuid4().hex, name=plan.name, tags=masked(plan_tags(plan)),
            uri=without_secrets(config.uri or ""), artifacts=config.artifacts, experiment=config.experiment,
            run_id=None,
        )  # fmt: skip
        self._journal.write("params", values=masked(dict(plan.settings)))

    def mark(self, folder: Path, status: str, error: str, plain: Mapping[str, str]) -> None:
        """Nothing: a job's own journal says how it ended."""

    def note(self, markdown: str) -> None:
        self._journal.write("tags", values={"mlflow.note.content": without_secrets(markdown)})

    def picture(self, name: str) -> str:
        """Nothing, since the note's pictures are named by the run's id."""
        return ""

    def best(self, settings: str, metrics: Mapping[str, float]) -> None:
        self._journal.write("tags", values={"feedrate.best": without_secrets(settings)})

    def artifact(self, path: Path) -> None:
        self._journal.write("artifact", path=str(path.relative_to(self._folder)), folder="")

    def end(self, status: str, error: str = "") -> None:
        """Closes the parent, and sends its record if the store has come back."""
        from feedrate.tracking.backlog import Sender, destination

        self._journal.write("end", status=status, error=without_secrets(error))
        try:
            Sender().send(self._folder, destination(self._folder, None))
        except UserError as fault:
            _log.warning("the sweep's record could not be sent (%s); send it with: python src/sync.py %s",
                         str(fault).splitlines()[0], self._folder)  # fmt: skip
