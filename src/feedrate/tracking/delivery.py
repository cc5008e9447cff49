"""Carries a run's journal to MLflow: each event becomes MLflow's calls, in order, within MLflow's limits.

What was carried may be carried again without harm, since a process may die between the store's answer and its own note
of it. When it is done, and by which process, is in courier.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from feedrate.tracking.address import Address
from feedrate.tracking.journal import JOURNAL, SILENT_END, SYSTEM, Claim, Delivered, Event, events
from feedrate.tracking.secrets import without_secrets
from feedrate.tracking.store import StoreRefusal, translated_errors
from feedrate.tracking.sweep import PARENT_JOURNAL, PARENT_TAG, RUN_ID

if TYPE_CHECKING:
    from mlflow import MlflowClient

# MLflow's limits: https://mlflow.org/docs/latest/ml/tracking and mlflow/utils/validation.py
PARAMS_PER_BATCH = 100
METRICS_PER_BATCH = 1000
PARAM_CHARACTERS = 6000
TAG_CHARACTERS = 8000
DIGEST_CHARACTERS = 8
JOURNAL_TAG = "feedrate.journal"

_NOT_IN_NAMES = re.compile(r"[^\w\-. :/]")
_T = TypeVar("_T")


class Delivery:
    """The way of one run folder's journal into an open store; one process at a time has it.

    Attributes:
        state: how far it has come.

    Raises:
        BlockingIOError: another process carries this journal now.
    """

    def __init__(self, folder: Path, address: Address, client: MlflowClient, experiment_id: str) -> None:
        self._claim = Claim(folder)
        self._folder = folder
        self._address = address
        self._client = client
        self._experiment_id = experiment_id
        self.state = Delivered.read(folder)
        self._journal_id = ""
        self._checked = False

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
        if self._checked:
            return
        first = next(events(self._folder / JOURNAL), None)
        if first is None:
            return
        self._journal_id = str(first[0].get("journal", ""))
        shown = self._address.shown
        known = self.state.store in ("", shown) and (not self.state.run_id or self._known(self.state.run_id))
        if not known:
            self.state = Delivered()
        self.state.store = shown
        self._checked = True

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
            tags = {key: _cut(str(value), TAG_CHARACTERS) for key, value in event["tags"].items()}
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
        if Delivered.read(folder).run_id == "" and (folder / JOURNAL).exists():
            try:
                parent = Delivery(folder, self._address, self._client, self._experiment_id)
            except BlockingIOError as error:  # another job's courier does it
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
            self._client.set_tag(self.state.run_id, "feedrate.error", _cut(event["error"], TAG_CHARACTERS))
        self._client.set_terminated(self.state.run_id, event["status"], end_time=event["time_ms"])
        self.state.status = event["status"]

    # -----------------------------------------------------------------------------------------------------
    # Events
    # -----------------------------------------------------------------------------------------------------

    def _carry(self, group: Sequence[tuple[Event, int]]) -> None:
        event = group[0][0]
        kind = event["event"]
        if kind == "metrics":
            self._metrics([point for one, _ in group for point in one["points"]])
        elif kind == "params":
            self._params(event["values"])
        elif kind == "tags":
            self._tags(event["values"])
        else:
            one = {
                "begin": self._begin, "resume": self._resume, "end": self._end,
                "dataset": self._dataset, "artifact": self._artifact, "model": self._model,
            }.get(kind)  # fmt: skip
            if one is None:
                self._reject(kind, "this version does not know it")
                return
            if kind in ("begin", "resume", "end"):  # without the run there is nothing to record in
                one(event)
            else:
                self._one(lambda: one(event), f"{kind} {event.get('path') or event.get('name') or ''}")
        self.state.parts += 1

    def _metrics(self, points: Sequence[Sequence[Any]]) -> None:
        from mlflow.entities import Metric

        finite = [p for p in points if not isinstance(p[1], str)]  # the others have a tag of their own
        metrics = [Metric(_name(name), value, time_ms, step) for name, value, step, time_ms in finite]
        self._batches(
            metrics,
            METRICS_PER_BATCH,
            lambda part: self._client.log_batch(self.state.run_id, metrics=part),
            lambda metric: f"metric {metric.key} of step {metric.step}",
        )

    def _params(self, values: dict[str, str]) -> None:
        from mlflow.entities import Param

        self._batches(
            [Param(_name(name), _cut(text, PARAM_CHARACTERS)) for name, text in values.items()],
            PARAMS_PER_BATCH,
            lambda part: self._client.log_batch(self.state.run_id, params=part),
            lambda param: f"parameter {param.key}",
        )

    def _tags(self, values: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        self._batches(
            [
                RunTag(_name(name), _cut(text.replace(RUN_ID, self.state.run_id), TAG_CHARACTERS))
                for name, text in values.items()
            ],
            PARAMS_PER_BATCH,
            lambda part: self._client.log_batch(self.state.run_id, tags=part),
            lambda tag: f"tag {tag.key}",
        )

    def _dataset(self, event: Event) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        digest, partition = event["digest"], event["partition"]
        # MLflow keeps one record per name and digest: without the partition the second one would be lost.
        record = Dataset(
            name=event["name"],
            digest=f"{digest[:DIGEST_CHARACTERS]}-{partition}",
            source_type="local",
            source=json.dumps({"uri": event["source"]}),
            profile=json.dumps({"samples": event["samples"], "partition": partition, "digest": digest}),
        )
        tags = [InputTag("mlflow.data.context", partition)]
        self._client.log_inputs(self.state.run_id, datasets=[DatasetInput(dataset=record, tags=tags)])

    def _artifact(self, event: Event) -> None:
        path = self._folder / event["path"]
        if path.is_dir():
            with self._sending(path):
                self._client.log_artifacts(self.state.run_id, str(path), event["folder"] or None)
        elif path.is_file():
            with self._sending(path):
                self._client.log_artifact(self.state.run_id, str(path), event["folder"] or None)
        else:
            self._reject(f"file {event['path']}", "it is not there any more")

    def _model(self, event: Event) -> None:
        from feedrate.tracking.model import deliver_model

        path = self._folder / event["path"]
        with self._sending(path):
            deliver_model(self._client, self.state.run_id, path, f"{self._journal_id}-{event['time_ms']}")

    # -----------------------------------------------------------------------------------------------------
    # What the store refuses
    # -----------------------------------------------------------------------------------------------------

    def _batches(
        self,
        items: Sequence[_T],
        size: int,
        send: Callable[[Sequence[_T]], object],
        words: Callable[[_T], str],
    ) -> None:
        """Sends in parts; of a part that is refused, everything but the items that are refused alone too."""
        for start in range(0, len(items), size):
            self._halves(items[start : start + size], send, words)
            self.state.parts += 1
            if start + size < len(items):
                self._note()

    def _halves(self, part: Sequence[_T], send: Callable[[Sequence[_T]], object], words: Callable[[_T], str]) -> None:
        if len(part) == 1:
            self._one(lambda: send(part), words(part[0]))
            return
        try:
            with translated_errors(self._address):
                send(part)
        except StoreRefusal:
            middle = len(part) // 2
            self._halves(part[:middle], send, words)
            self._halves(part[middle:], send, words)

    def _one(self, send: Callable[[], object], words: str) -> None:
        try:
            with translated_errors(self._address):
                send()
        except StoreRefusal as refusal:
            self._reject(words, str(refusal).splitlines()[0])

    def _reject(self, words: str, reason: str) -> None:
        self.state.rejected.append(without_secrets(f"{words}: {reason}")[:400])

    def _sending(self, path: Path) -> _Sending:
        return _Sending(self, sum(f.stat().st_size for f in _files(path)))

    def _note(self) -> None:
        self.state.write(self._folder)


class _Sending:
    """While it lasts, the state says how many bytes are on their way: the end of a run waits longer for large files."""

    def __init__(self, delivery: Delivery, size: int) -> None:
        self._delivery, self._size = delivery, size

    def __enter__(self) -> None:
        self._delivery.state.sending = self._size
        self._delivery._note()

    def __exit__(self, *error: object) -> None:
        self._delivery.state.sending = 0


def _files(path: Path) -> Iterator[Path]:
    return (f for f in path.rglob("*") if f.is_file()) if path.is_dir() else iter([path] if path.is_file() else [])


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


def _name(name: str) -> str:
    """A name with only the characters and the length that MLflow takes."""
    return _NOT_IN_NAMES.sub("_", name)[:250]


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
