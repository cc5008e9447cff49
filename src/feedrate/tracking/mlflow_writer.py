"""Carries a run's journal to MLflow in order: begins the run there, ends it, and notes how far it has come.

What was carried may be carried again without harm, since a process may die between the store's answer and its own note
of it. What an event becomes is in calls.py; when it is carried, and by which process, in uploader.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from feedrate.system.secrets import without_secrets
from feedrate.tracking.address import Address
from feedrate.tracking.calls import METRICS_PER_BATCH, TAG_CHARACTERS, Calls, cut
from feedrate.tracking.journal import JOURNAL, SILENT_END, SYSTEM, Delivered, Event, SweepLock, events
from feedrate.tracking.store import translated_errors
from feedrate.tracking.sweep import PARENT_JOURNAL, PARENT_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient

JOURNAL_TAG = "feedrate.journal"


class MLflowWriter:
    """The way of one run folder's journal into an open store; one process at a time has it.

    Attributes:
        state: how far it has come.

    Raises:
        BlockingIOError: another process carries this journal now.
    """

    def __init__(self, folder: Path, address: Address, client: MlflowClient, experiment_id: str) -> None:
        self._claim = SweepLock(folder)
        self._folder = folder
        self._address = address
        self._client = client
        self._experiment_id = experiment_id
        self.state = Delivered.read(folder)
        self._journal_id = ""
        self._calls: Calls | None = None  # once the journal has been looked at

    def close(self) -> None:
        """Gives the journal up."""
        self._claim.release()

    def deliver(self, end: int | None = None, *, system: bool = True) -> None:
        """Carries what is there.

        Args:
            end: byte offset in the journal to stop at, None for its end.
            system: whether readings of the machine go too.

        Raises:
            StoreFault: the store is away; what it has taken is noted.
            UserError: it cannot be used as it is.
        """
        try:
            with translated_errors(self._address):
                self._check()
                for group in _groups(events(self._folder / JOURNAL, self.state.offset, end)):
                    self._carry(group)
                    self.state.offset, self.state.error = group[-1][1], ""
                    self._note()
                if system:
                    self._deliver_system()
        except Exception as error:
            self.state.error = without_secrets(str(error))[:500]
            self._note()
            raise
        if self.state.error:
            self.state.error = ""
            self._note()

    def close_silent_run(self, error: str = SILENT_END, status: Literal["FAILED", "KILLED"] = "KILLED") -> None:
        """Gives a run its status whose process can no longer do it; a run that said its end is left alone.

        Raises:
            StoreFault: as `deliver`.
        """
        if self.state.run_id and self.state.status == "RUNNING":
            with translated_errors(self._address):
                self._client.set_tag(self.state.run_id, "feedrate.error", error)
                self._client.set_terminated(self.state.run_id, status)
            self.state.status = status
            self._note()

    @property
    def finished(self) -> bool:
        """Whether the run has said its end, and the store has everything."""
        return self.state.status not in ("", "RUNNING") and self.state.left(self._folder) == 0

    def _deliver_system(self) -> None:
        if self.state.run_id:
            for group in _groups(events(self._folder / SYSTEM, self.state.system_offset)):
                self._carry(group)
                self.state.system_offset = group[-1][1]
                self._note()

    # -----------------------------------------------------------------------------------------------------
    # The run
    # -----------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        """Once for each process: a run that the store does not have (any more) is made anew from the whole journal."""
        if self._calls is not None:
            return
        first = next(events(self._folder / JOURNAL), None)
        if first is None:
            return
        self._journal_id = str(first[0].get("journal", ""))
        name = self._address.name
        known = self.state.store in ("", name, self._address.shown) and (
            not self.state.run_id or self._known(self.state.run_id)
        )
        if not known:
            self.state = Delivered()
        self.state.store = name
        self._calls = Calls(self._folder, self._address, self._client, self.state, self._note, self._journal_id)
        self._calls.store_set_aside()

    def _known(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            found = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        return bool(found.info.experiment_id == self._experiment_id and found.info.lifecycle_stage == "active")

    def _begin(self, event: Event) -> None:
        if self.state.run_id:
            return
        condition = f"tags.`{JOURNAL_TAG}` = '{self._journal_id}'"
        earlier = str(event.get("run_id") or "")
        if found := self._client.search_runs([self._experiment_id], condition, max_results=1):
            run_id = found[0].info.run_id
        elif earlier and self._known(earlier):
            run_id = earlier
        else:
            tags = {key: cut(str(value), TAG_CHARACTERS) for key, value in event["tags"].items()}
            if tags.get(PARENT_TAG, "").startswith(PARENT_JOURNAL):
                parent = self._parent(Path(tags.pop(PARENT_TAG).removeprefix(PARENT_JOURNAL)))
                tags |= {PARENT_TAG: parent} if parent else {}
            run = self._client.create_run(
                self._experiment_id,
                start_time=event["time_ms"],
                tags={**tags, JOURNAL_TAG: self._journal_id},
                run_name=event["name"],
            )
            run_id = run.info.run_id
        self.state.run_id, self.state.experiment_id = str(run_id), self._experiment_id
        self.state.status = "RUNNING"

    def _parent(self, folder: Path) -> str:
        """MLflow's id of a sweep that has a journal; it is sent first if need be."""
        if not folder.exists() and folder.name == self._folder.parent.name:
            folder = self._folder.parent  # the repository was moved
        if Delivered.read(folder).run_id == "" and (folder / JOURNAL).exists():
            try:
                parent = MLflowWriter(folder, self._address, self._client, self._experiment_id)
            except BlockingIOError as error:  # another job's uploader does it
                raise ConnectionError(str(error)) from None  # a fault, so that it is tried again
            try:
                parent.deliver()
            finally:
                parent.close()
        return Delivered.read(folder).run_id

    def _resume(self, event: Event) -> None:
        self._client.update_run(self.state.run_id, status="RUNNING")
        run = self._client.get_run(self.state.run_id)
        if "feedrate.error" in run.data.tags:
            self._client.delete_tag(self.state.run_id, "feedrate.error")
        self.state.status = "RUNNING"

    def _end(self, event: Event) -> None:
        if event["error"]:
            self._client.set_tag(self.state.run_id, "feedrate.error", cut(event["error"], TAG_CHARACTERS))
        self._client.set_terminated(self.state.run_id, event["status"], end_time=event["time_ms"])
        self.state.status = event["status"]
        self._note()
        if self._calls is not None:
            self._calls.store_set_aside()

    def _carry(self, group: Sequence[tuple[Event, int]]) -> None:
        event = group[0][0]
        own = {"begin": self._begin, "resume": self._resume, "end": self._end}.get(event["event"])
        if own is not None:
            own(event)
        else:
            assert self._calls is not None
            self._calls.carry(group)
        self.state.parts += 1

    def _note(self) -> None:
        self.state.write(self._folder)


def _groups(found: Iterator[tuple[Event, int]]) -> Iterator[list[tuple[Event, int]]]:
    """Each event alone, but for metrics: as many in a row as make one call."""
    group: list[tuple[Event, int]] = []
    points = 0
    for event, offset in found:
        metrics = event["event"] == "metrics"
        more = len(event["points"]) if metrics else METRICS_PER_BATCH + 1
        if group and points + more > METRICS_PER_BATCH:
            yield group
            group, points = [], 0
        group.append((event, offset))
        points += more
    if group:
        yield group
