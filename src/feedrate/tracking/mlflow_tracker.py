"""One run in MLflow: turns what training reports into MLflow's calls, within MLflow's limits.

Where the run lies and how its store is opened is in address.py and store.py.
"""

from __future__ import annotations

import getpass
import json
import logging
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from feedrate.config import ROOT
from feedrate.tracking.address import experiment_link, read_address, run_link, without_secrets
from feedrate.tracking.store import open_store, translated_errors
from feedrate.tracking.sweep import sweep_tags
from feedrate.tracking.system import SystemReadings
from feedrate.tracking.tracker import Status, Tracker
from feedrate.tracking.view import VIEW_KEY

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow.entities import Metric
    from torch import Tensor, nn

    from feedrate.config import TrackingConfig
    from feedrate.timing.point import Point

# MLflow's limits: https://mlflow.org/docs/latest/ml/tracking and mlflow/utils/validation.py
PARAMS_PER_BATCH = 100
METRICS_PER_BATCH = 1000
PARAM_CHARACTERS = 6000
TAG_CHARACTERS = 8000
DIGEST_CHARACTERS = 8

_NOT_IN_NAMES = re.compile(r"[^\w\-. :/]")
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class MLflowTracker(Tracker):
    """A run that is open from construction to `end`."""

    def __init__(self, config: TrackingConfig, *, run_name: str, run_folder: Path, run_id: str | None = None) -> None:
        """Open the store (created if need be) and begin a run, or go on with one; needs `config.uri`.

        Raises:
            UserError: the address is wrong, or the store does not answer or cannot be used.
        """
        assert config.uri is not None
        self._address = read_address(config.uri, config.artifacts)
        self._log_model = config.log_model
        self._client, self._experiment_id = open_store(self._address, config.experiment)
        tags = {
            "mlflow.user": _user(),
            "mlflow.source.name": _relative(Path(sys.argv[0] or "python")),
            "mlflow.source.type": "LOCAL",
            "feedrate.run_folder": _relative(run_folder),
            **sweep_tags(),
        }
        with translated_errors(self._address):
            if run_id is not None and self._known(run_id):
                self._client.update_run(run_id, status="RUNNING")
                self._run_id = run_id
            else:
                run = self._client.create_run(self._experiment_id, tags=tags, run_name=run_name)
                self._run_id = str(run.info.run_id)
        self._ended = False
        self._cut_params: list[str] = []
        self._non_finite: Counter[str] = Counter()
        self._system = SystemReadings() if config.system_metrics else None

    def _known(self, run_id: str) -> bool:
        """Whether the store has this run: it may have been made in another one, or deleted since."""
        from mlflow.exceptions import MlflowException

        try:
            found = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        return bool(found.info.experiment_id == self._experiment_id)

    @property
    def run_id(self) -> str:
        return self._run_id

    def last_step(self, metric: str) -> int:
        with translated_errors(self._address):
            return max((m.step for m in self._client.get_metric_history(self._run_id, metric)), default=-1)

    def mark(self, run_id: str, status: Status, error: str) -> None:
        try:
            if self._known(run_id) and self._client.get_run(run_id).info.status == "RUNNING":
                self._client.set_tag(run_id, "feedrate.error", _cut(error, TAG_CHARACTERS))
                self._client.set_terminated(run_id, status)
        except Exception as failure:
            _log.warning("run %s could not be marked %s: %s", run_id, status, str(failure).splitlines()[0])

    @property
    def url(self) -> str:
        return run_link(self._address.page, self._experiment_id, self._run_id)

    @property
    def experiment_url(self) -> str:
        return experiment_link(self._address.page, self._experiment_id, VIEW_KEY)

    def params(self, values: Mapping[str, object]) -> None:
        from mlflow.entities import Param

        params = []
        for name, value in _flatten(values):
            text = without_secrets(_words(value))
            if len(text) > PARAM_CHARACTERS:
                self._cut_params.append(name)
            params.append(Param(_name(name), _cut(text, PARAM_CHARACTERS)))
        with translated_errors(self._address):
            for part in _parts(params, PARAMS_PER_BATCH):
                self._client.log_batch(self._run_id, params=part)
        if self._cut_params:
            self.tags({"feedrate.cut_params": ", ".join(self._cut_params)})

    def tags(self, values: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        texts = {_name(key): without_secrets(str(value)) for key, value in values.items()}
        tags = [RunTag(key, _cut(text, TAG_CHARACTERS)) for key, text in texts.items()]
        with translated_errors(self._address):
            for part in _parts(tags, PARAMS_PER_BATCH):
                self._client.log_batch(self._run_id, tags=part)

    def metrics(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        finite = [point for point in points if math.isfinite(point.value)]
        metrics = [Metric(_name(p.name), float(f"{p.value:.6g}"), p.time_ms, p.step) for p in finite]
        if len(finite) < len(points):
            self._non_finite.update(point.name for point in points if not math.isfinite(point.value))
            named = ", ".join(f"{name}: {count}" for name, count in sorted(self._non_finite.items()))
            self.tags({"feedrate.non_finite": f"values left out: {named}"})
        self._send(metrics + (self._system.fetch() if self._system else []))

    def dataset(self, name: str, digest: str, partition: str, samples: int, source: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        # MLflow keeps one record per name and digest: without the partition the second one would be lost.
        short = f"{digest[:DIGEST_CHARACTERS]}-{partition}"
        record = Dataset(
            name=name,
            digest=short,
            source_type="local",
            source=json.dumps({"uri": without_secrets(source)}),
            profile=json.dumps({"samples": samples, "partition": partition, "digest": digest}),
        )
        tags = [InputTag("mlflow.data.context", partition)]
        with translated_errors(self._address):
            self._client.log_inputs(self._run_id, datasets=[DatasetInput(dataset=record, tags=tags)])

    def artifact(self, path: Path, folder: str = "") -> None:
        with translated_errors(self._address):
            if path.is_dir():
                self._client.log_artifacts(self._run_id, str(path), folder or None)
            else:
                self._client.log_artifact(self._run_id, str(path), folder or None)

    def text(self, text: str, name: str) -> None:
        with translated_errors(self._address):
            self._client.log_text(self._run_id, without_secrets(text), name)

    def figure(self, figure: Figure, name: str) -> None:
        with translated_errors(self._address):
            self._client.log_figure(self._run_id, figure, name, save_kwargs={"dpi": figure.dpi})

    def note(self, markdown: str) -> None:
        self.tags({"mlflow.note.content": markdown})

    def model(self, module: nn.Module, example: Tensor) -> None:
        if not self._log_model:
            return
        from feedrate.tracking.model import log_model

        uri = self._address.uri
        try:
            log_model(module, example, client=self._client, run_id=self._run_id, tracking_uri=uri)
        except Exception as error:  # not every model can be exported; the training was not in vain
            _log.warning("tracking.log_model=true, but the model could not be exported: %s", error)
            self.tags({"feedrate.model_error": str(error)})

    def end(self, status: Status, error: str = "") -> None:
        if self._ended:
            return
        self._ended = True
        readings = self._system.stop() if self._system else []
        try:
            if error:
                self.tags({"feedrate.error": error})
            self._send(readings)
            with translated_errors(self._address):
                self._client.set_terminated(self._run_id, status)
        except Exception as failure:
            _log.warning("the end of the run could not be recorded: %s", failure)

    def _send(self, metrics: list[Metric]) -> None:
        with translated_errors(self._address):
            for part in _parts(metrics, METRICS_PER_BATCH):
                self._client.log_batch(self._run_id, metrics=part)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may have no name for its user
        return "unknown"


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _words(value: object) -> str:
    """A setting as it is written in YAML: `true`, `null`, `[1, 2]`; words without quotes."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, (bool, list, tuple, dict)):
        return json.dumps(value, default=str)
    return str(value)


def _name(name: str) -> str:
    """A name with only the characters and the length that MLflow takes."""
    return _NOT_IN_NAMES.sub("_", name)[:250]


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _parts(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _relative(path: Path) -> str:
    """The path within the repository, or as it is where it lies elsewhere."""
    path = path.absolute()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
