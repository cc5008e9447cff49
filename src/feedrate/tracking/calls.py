"""The events of a run that exists, as MLflow's calls within MLflow's limits; what the store refuses is set aside.

Which events are carried, and how a run begins and ends, is in delivery.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from feedrate.system.secrets import without_secrets
from feedrate.tracking.address import Address
from feedrate.tracking.journal import Delivered, Event
from feedrate.tracking.store import StoreRefusal, translated_errors
from feedrate.tracking.sweep import RUN_ID

if TYPE_CHECKING:
    from mlflow import MlflowClient

# MLflow's limits: https://mlflow.org/docs/latest/ml/tracking and mlflow/utils/validation.py
PARAMS_PER_BATCH = 100
METRICS_PER_BATCH = 1000
PARAM_CHARACTERS = 6000
TAG_CHARACTERS = 8000
DIGEST_CHARACTERS = 8

_NOT_IN_NAMES = re.compile(r"[^\w\-. :/]")
_T = TypeVar("_T")


class Calls:
    """What a run's events ask of the store.

    Args:
        folder: the run folder, which holds the files that events name.
        state: of the delivery; its `run_id` is the run that is meant, and what is refused is added to it.
        note: keeps the state.
        journal_id: of the journal, for what must be found again.
    """

    def __init__(
        self,
        folder: Path,
        address: Address,
        client: MlflowClient,
        state: Delivered,
        note: Callable[[], None],
        journal_id: str,
    ) -> None:
        self._folder, self._address, self._client = folder, address, client
        self._state, self._note, self._journal_id = state, note, journal_id

    def carry(self, group: Sequence[tuple[Event, int]]) -> None:
        """One event, or several of metrics in a row.

        Raises:
            StoreFault: the store is away.
            UserError: it cannot be used as it is.
        """
        event = group[0][0]
        kind = event["event"]
        if kind == "metrics":
            self._metrics([point for one, _ in group for point in one["points"]])
        elif kind == "params":
            self._params(event["values"])
        elif kind == "tags":
            self._tags(event["values"])
        elif kind == "dataset":
            self._one(lambda: self._dataset(event), f"dataset {event['name']}")
        elif kind in ("artifact", "model"):
            if (reason := self._stored(event)) is not None:
                self._state.aside.append({"event": event, "reason": reason})
        else:
            self._reject(kind, "this version does not know it")

    def store_set_aside(self) -> None:
        """Tries again what was set aside.

        Raises:
            StoreFault: the store is away.
        """
        for item in list(self._state.aside):
            if (reason := self._stored(item["event"])) is None:
                self._state.aside.remove(item)
            else:
                item["reason"] = reason
            self._note()

    def _stored(self, event: Event) -> str | None:
        """Stores a file or a model, which have a place of their own; why that place does not take it, if it does not.

        Raises:
            StoreFault: the store itself is away.
        """
        send = self._artifact if event["event"] == "artifact" else self._model
        words = f"{event['event']} {event['path']}"
        try:
            with translated_errors(self._address):
                send(event)
        except StoreRefusal as refusal:
            self._reject(words, str(refusal).splitlines()[0])
        except Exception as error:  # whatever the libraries of that place raise
            with translated_errors(self._address):
                self._client.get_run(self._state.run_id)
            return without_secrets(f"{words}: {' '.join(str(error.__cause__ or error).split())}")[:400]
        return None

    def _metrics(self, points: Sequence[Sequence[Any]]) -> None:
        from mlflow.entities import Metric

        finite = [p for p in points if not isinstance(p[1], str)]  # the others have a tag of their own
        metrics = [Metric(_name(name), value, time_ms, step) for name, value, step, time_ms in finite]
        self._batches(
            metrics,
            METRICS_PER_BATCH,
            lambda part: self._client.log_batch(self._state.run_id, metrics=part),
            lambda metric: f"metric {metric.key} of step {metric.step}",
        )

    def _params(self, values: dict[str, str]) -> None:
        from mlflow.entities import Param

        self._batches(
            [Param(_name(name), cut(text, PARAM_CHARACTERS)) for name, text in values.items()],
            PARAMS_PER_BATCH,
            lambda part: self._client.log_batch(self._state.run_id, params=part),
            lambda param: f"parameter {param.key}",
        )

    def _tags(self, values: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        self._batches(
            [
                RunTag(_name(name), cut(text.replace(RUN_ID, self._state.run_id), TAG_CHARACTERS))
                for name, text in values.items()
            ],
            PARAMS_PER_BATCH,
            lambda part: self._client.log_batch(self._state.run_id, tags=part),
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
        self._client.log_inputs(self._state.run_id, datasets=[DatasetInput(dataset=record, tags=tags)])

    def _artifact(self, event: Event) -> None:
        path = self._folder / event["path"]
        if path.is_dir():
            with self._sending(path):
                self._client.log_artifacts(self._state.run_id, str(path), event["folder"] or None)
        elif path.is_file():
            with self._sending(path):
                self._client.log_artifact(self._state.run_id, str(path), event["folder"] or None)
        else:
            self._reject(f"file {event['path']}", "it is not there any more")

    def _model(self, event: Event) -> None:
        from feedrate.tracking.model import deliver_model

        path = self._folder / event["path"]
        with self._sending(path):
            deliver_model(self._client, self._state.run_id, path, f"{self._journal_id}-{event['time_ms']}")

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
            self._state.parts += 1
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
        self._state.rejected.append(without_secrets(f"{words}: {reason}")[:400])

    def _sending(self, path: Path) -> _Sending:
        return _Sending(self, sum(f.stat().st_size for f in _files(path)))


class _Sending:
    """While it lasts, the state says how many bytes are on their way: the end of a run waits longer for large files."""

    def __init__(self, calls: Calls, size: int) -> None:
        self._calls, self._size = calls, size

    def __enter__(self) -> None:
        self._calls._state.sending = self._size
        self._calls._note()

    def __exit__(self, *error: object) -> None:
        self._calls._state.sending = 0


def _files(path: Path) -> Iterator[Path]:
    return (f for f in path.rglob("*") if f.is_file()) if path.is_dir() else iter([path] if path.is_file() else [])


def _name(name: str) -> str:
    """A name with only the characters and the length that MLflow takes."""
    return _NOT_IN_NAMES.sub("_", name)[:250]


def cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
