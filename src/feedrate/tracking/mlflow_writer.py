"""Sends one run's journal to MLflow, in order: creates the run there, ends it, and notes how far it has come.

Sending an event twice does no harm: a process may die between the store's answer and its own note of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feedrate.system.secrets import without_secrets
from feedrate.tracking.address import Address
from feedrate.tracking.journal import (
    JOURNAL,
    PARENT_JOURNAL,
    PARENT_TAG,
    RUN_ID,
    SILENT_END,
    Event,
    UploadState,
    events,
    lock_journal,
)
from feedrate.tracking.store import StoreRefusal, translated_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient

JOURNAL_TAG = "feedrate.journal"

# MLflow's limits: https://mlflow.org/docs/latest/ml/tracking and mlflow/utils/validation.py
ITEMS_PER_BATCH = 100  # of parameters or tags
METRICS_PER_BATCH = 1000
PARAM_CHARACTERS = 6000
TAG_CHARACTERS = 8000

Group = Sequence[tuple[Event, int]]


class MLflowWriter:
    """Sends one run folder's journal to an open store; JournalBusy if another process does so now."""

    def __init__(self, folder: Path, address: Address, client: MlflowClient, experiment_id: str) -> None:
        self._lock = lock_journal(folder)
        self._folder, self._address = folder, address
        self._client, self._experiment_id = client, experiment_id
        self.state = UploadState.read(folder)
        self._journal_id = ""  # known once the run was looked up

    def close(self) -> None:
        """Releases the journal."""
        self._lock.close()

    def send(self) -> None:
        """Sends what is not sent yet. Raises StoreFault if the store is away."""
        try:
            with translated_errors(self._address):
                self._look_up_run()
                for name, offset in self.state.offsets.items():
                    # only what is there now: a killed run's uploader leaves the rest to that of the resumed run
                    for group in _groups(list(events(self._folder / name, offset))):
                        self._send(group)
                        self.state.offsets[name] = group[-1][1]
                        self.state.write(self._folder)
        except Exception as error:
            self.state.error = without_secrets(str(error))[:500]
            self.state.write(self._folder)
            raise
        if self.state.error:
            self.state.error = ""
            self.state.write(self._folder)

    def close_silent_run(self) -> None:
        """Marks a run as KILLED whose process is gone without an end event; others stay as they are."""
        if self.state.run_id and self.state.alive:
            with translated_errors(self._address):
                self._client.set_tag(self.state.run_id, "feedrate.error", SILENT_END)
                self._client.set_terminated(self.state.run_id, "KILLED")
            self.state.status = "KILLED"
            self.state.write(self._folder)

    # -- The run ---------------------------------------------------------------------------------------------

    def _look_up_run(self) -> None:
        """Once: a run that this store does not have, or no longer has, is recorded again from the whole journal."""
        if self._journal_id or (first := next(events(self._folder / JOURNAL), None)) is None:
            return
        self._journal_id = first[0]["journal"]
        same_store = self.state.store in ("", self._address.shown)
        if not same_store or (self.state.run_id and not self._exists(self.state.run_id)):
            self.state = UploadState()
        self.state.store = self._address.shown
        self._send_aside()

    def _exists(self, run_id: str) -> bool:
        try:
            with translated_errors(self._address):
                found = self._client.get_run(run_id)
        except StoreRefusal:
            return False
        return bool(found.info.experiment_id == self._experiment_id and found.info.lifecycle_stage == "active")

    def _begin(self, event: Event) -> None:
        if self.state.run_id:
            return
        condition = f"tags.`{JOURNAL_TAG}` = '{self._journal_id}'"
        if found := self._client.search_runs([self._experiment_id], condition, max_results=1):
            run = found[0]
        else:
            tags = {key: cut(value, TAG_CHARACTERS) for key, value in event["tags"].items()}
            if tags.get(PARENT_TAG, "").startswith(PARENT_JOURNAL):
                parent = self._parent(Path(tags.pop(PARENT_TAG).removeprefix(PARENT_JOURNAL)))
                tags |= {PARENT_TAG: parent} if parent else {}
            tags[JOURNAL_TAG] = self._journal_id
            run = self._client.create_run(self._experiment_id, event["time_ms"], tags, event["name"])
        self.state.run_id, self.state.experiment_id = run.info.run_id, self._experiment_id
        self.state.status = "RUNNING"

    def _parent(self, folder: Path) -> str:
        """MLflow's id of the sweep whose journal lies in `folder`; the sweep's run is created if it has to be."""
        if not folder.exists():
            folder = self._folder.parent  # the repository was moved
        if not UploadState.read(folder).run_id and (folder / JOURNAL).exists():
            with closing(MLflowWriter(folder, self._address, self._client, self._experiment_id)) as parent:
                parent.send()
        return UploadState.read(folder).run_id

    def _resume(self) -> None:
        self._client.update_run(self.state.run_id, status="RUNNING")
        if "feedrate.error" in self._client.get_run(self.state.run_id).data.tags:
            self._client.delete_tag(self.state.run_id, "feedrate.error")
        self.state.status = "RUNNING"

    def _end(self, event: Event) -> None:
        if event["error"]:
            self._client.set_tag(self.state.run_id, "feedrate.error", cut(event["error"], TAG_CHARACTERS))
        self._client.set_terminated(self.state.run_id, event["status"], end_time=event["time_ms"])
        self.state.status = event["status"]
        self._send_aside()

    # -- What it recorded ------------------------------------------------------------------------------------

    def _send(self, group: Group) -> None:
        """Sends one event, or several of metrics in a row."""
        from mlflow.entities import Metric, Param, RunTag

        event = group[0][0]
        match event["event"]:
            case "begin":
                self._begin(event)
            case "resume":
                self._resume()
            case "end":
                self._end(event)
            case "metrics":
                metrics = [
                    Metric(_name(name), value, one["time_ms"], one["step"])
                    for one, _ in group
                    for name, value in one["values"].items()
                ]
                self._log("metrics", metrics, METRICS_PER_BATCH)
            case "params":
                params = [Param(_name(name), cut(text, PARAM_CHARACTERS)) for name, text in event["values"].items()]
                self._log("params", params, ITEMS_PER_BATCH)
            case "tags":
                texts = {name: text.replace(RUN_ID, self.state.run_id) for name, text in event["values"].items()}
                tags = [RunTag(_name(name), cut(text, TAG_CHARACTERS)) for name, text in texts.items()]
                self._log("tags", tags, ITEMS_PER_BATCH)
            case "dataset":
                self._log_dataset(event)
            case "artifact":
                self._send_file(event)

    def _log(self, kind: str, items: Sequence[Any], size: int) -> None:
        """Sends items in batches; a batch that is refused is sent again name by name."""
        for start in range(0, len(items), size):
            batch: dict[str, Any] = {kind: items[start : start + size]}
            try:
                with translated_errors(self._address):
                    self._client.log_batch(self.state.run_id, **batch)
            except StoreRefusal:
                for name in dict.fromkeys(item.key for item in batch[kind]):
                    named: dict[str, Any] = {kind: [item for item in batch[kind] if item.key == name]}
                    with self._refusals_noted(f"{kind.removesuffix('s')} {name}"):
                        self._client.log_batch(self.state.run_id, **named)

    def _log_dataset(self, event: Event) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.exceptions import MlflowException

        digest, partition = event["digest"], event["partition"]
        record = Dataset(
            name=event["name"],
            # MLflow keeps one record for each name and digest: the partition makes them two
            digest=f"{digest[:8]}-{partition}",
            source_type="local",
            source=json.dumps({"uri": event["source"]}),
            profile=json.dumps({"samples": event["samples"], "partition": partition, "digest": digest}),
        )
        inputs = [DatasetInput(dataset=record, tags=[InputTag("mlflow.data.context", partition)])]
        with self._refusals_noted(f"dataset {event['name']}"):
            try:
                self._client.log_inputs(self.state.run_id, datasets=inputs)
            except MlflowException:  # another run may have recorded the same data set at this instant
                self._client.log_inputs(self.state.run_id, datasets=inputs)

    def _send_file(self, event: Event) -> None:
        """Sends a file or folder; one whose place fails while the store answers is set aside, to be sent again."""
        path, words = self._folder / event["path"], f"artifact {event['path']}"
        if not path.exists():
            self.state.rejected.append(without_secrets(f"{words}: it does not exist any more"))
            return
        try:
            with self._refusals_noted(words):
                if path.is_dir():
                    self._client.log_artifacts(self.state.run_id, str(path), event["folder"] or None)
                else:
                    self._client.log_artifact(self.state.run_id, str(path), event["folder"] or None)
        except Exception as error:  # any library that artifacts are stored with
            with translated_errors(self._address):
                self._client.get_run(self.state.run_id)
            reason = without_secrets(f"{words}: {' '.join(str(error.__cause__ or error).split())}")[:400]
            self.state.aside.append({"event": event, "reason": reason})

    def _send_aside(self) -> None:
        """Sends again what was set aside."""
        for item in list(self.state.aside):
            self._send_file(item["event"])
            self.state.aside.remove(item)
            self.state.write(self._folder)

    @contextmanager
    def _refusals_noted(self, words: str) -> Iterator[None]:
        """Adds what the store refuses to the state, instead of raising."""
        try:
            with translated_errors(self._address):
                yield
        except StoreRefusal as refusal:
            self.state.rejected.append(without_secrets(f"{words}: {str(refusal).splitlines()[0]}")[:400])


def _groups(found: Group) -> Iterator[Group]:
    """Each event alone, but metrics together, as many in a row as fit one batch."""
    start = points = 0
    for number, (event, _) in enumerate(found):
        more = len(event["values"]) if event["event"] == "metrics" else METRICS_PER_BATCH + 1
        if number > start and points + more > METRICS_PER_BATCH:
            yield found[start:number]
            start, points = number, 0
        points += more
    if found:
        yield found[start:]


def _name(name: str) -> str:
    """A name with only the characters and the length that MLflow accepts."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]


def cut(text: str, limit: int) -> str:
    """`text`, with an ellipsis at the end where it is longer than `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
