"""One run's tracker: writes what training reports into the run folder's journal, which the uploader carries to MLflow.

No call waits for a store but the opening (5 s at most) and the end. MLflow is not imported here.
"""

from __future__ import annotations

import getpass
import json
import logging
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from feedrate.config import shown_path
from feedrate.system.secrets import learn, masked, without_secrets
from feedrate.tracking.address import experiment_link, read_address, run_link
from feedrate.tracking.journal import FILES, JOURNAL, Delivered, Journal, as_json, events
from feedrate.tracking.sweep import sweep_tags
from feedrate.tracking.tracker import Status, Tracker
from feedrate.tracking.view import VIEW_KEY

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from feedrate.config import TrackingConfig
    from feedrate.tracking.point import Point

PARAM_CHARACTERS = 6000  # as MLflow keeps them
PATIENCE_S = 10.0  # without progress at the end
FILE_PATIENCE_S = 30.0  # the same of an SQLite file, whose writers wait for each other for up to 20 s
SHORT_PATIENCE_S = 3.0  # when somebody wants the process to end

_log = logging.getLogger("feedrate.tracking")


class Carrier(Protocol):
    """What carries the journal: a process of its own (uploader_process.py)."""

    def opened(self) -> str: ...
    def take(self, folder: Path, system_metrics: bool) -> None: ...
    def close_dead(self, folder: Path) -> None: ...
    def finish(self, patience_s: float) -> bool: ...


class JournalTracker(Tracker):
    """A run that is open from construction to `end`.

    Args:
        config: the group `tracking`, with a `uri`.
        run_id: of a run that was recorded without a journal and is gone on with.

    Raises:
        UserError: the settings are wrong, so that the run can never be recorded. A store that is away is a note.
    """

    def __init__(
        self, config: TrackingConfig, carrier: Carrier, *, run_name: str, run_folder: Path, run_id: str | None = None
    ) -> None:
        assert config.uri is not None
        learn({"uri": config.uri})
        self._address = read_address(config.uri, config.artifacts)
        self._log_model = config.log_model
        self._folder = run_folder
        self._carrier = carrier
        self._ended = False
        self._cut_params: list[str] = []
        self._non_finite: Counter[str] = Counter()
        if trouble := carrier.opened():
            _log.info("note: %s: the record is kept in %s, and sent when that is possible",
                      _first_line(trouble), shown_path(run_folder))  # fmt: skip
        run_folder.mkdir(parents=True, exist_ok=True)
        self._journal = Journal(run_folder)
        self._last_steps = self._read_back() if self._journal.existed else {}
        if self._journal.existed:
            self._journal.write("resume")
        else:
            tags = {
                "mlflow.user": _user(),
                "mlflow.source.name": shown_path(Path(sys.argv[0] or "python")),
                "mlflow.source.type": "LOCAL",
                "feedrate.run_folder": shown_path(run_folder),
                **sweep_tags(),
            }
            self._journal.begin(run_name, tags, config, run_id)
        carrier.take(run_folder, config.system_metrics)

    @property
    def active(self) -> bool:
        return True

    @property
    def run_id(self) -> str | None:
        return Delivered.read(self._folder).run_id or None

    @property
    def url(self) -> str | None:
        state = Delivered.read(self._folder)
        return run_link(self._address.page, state.experiment_id, state.run_id) if state.run_id else None

    @property
    def experiment_url(self) -> str | None:
        state = Delivered.read(self._folder)
        return experiment_link(self._address.page, state.experiment_id, VIEW_KEY) if state.run_id else None

    def last_step(self, metric: str) -> int:
        return self._last_steps.get(metric, -1)

    def close_dead(self, folder: Path) -> None:
        if (folder / JOURNAL).exists():
            self._carrier.close_dead(folder)

    def params(self, values: Mapping[str, object]) -> None:
        texts = {}
        for name, value in _flatten(masked(values)):
            texts[name] = _words(value)
            if len(texts[name]) > PARAM_CHARACTERS:
                self._cut_params.append(name)
        self._journal.write("params", values=texts)
        if self._cut_params:
            self.tags({"feedrate.cut_params": ", ".join(self._cut_params)})

    def tags(self, values: Mapping[str, str]) -> None:
        self._journal.write("tags", values=masked({key: str(value) for key, value in values.items()}))

    def metrics(self, points: Sequence[Point]) -> None:
        rows = [[p.name, as_json(p.value if not math.isfinite(p.value) else _rounded(p.value)), p.step, p.time_ms]
                for p in points]  # fmt: skip
        if rows:
            self._journal.write("metrics", points=rows)
        for point in points:
            self._last_steps[point.name] = max(point.step, self._last_steps.get(point.name, -1))
        left_out = [point.name for point in points if not math.isfinite(point.value)]
        if left_out:
            self._non_finite.update(left_out)
            named = ", ".join(f"{name}: {count}" for name, count in sorted(self._non_finite.items()))
            self.tags({"feedrate.non_finite": f"values left out: {named}"})

    def dataset(self, name: str, digest: str, partition: str, samples: int, source: str) -> None:
        self._journal.write("dataset", name=without_secrets(name), digest=digest, partition=partition, samples=samples,
                            source=without_secrets(source))  # fmt: skip

    def artifact(self, path: Path, folder: str = "") -> None:
        path = path.absolute()
        inside = path.is_relative_to(self._folder.absolute())  # then the journal may move with the folder
        shown = path.relative_to(self._folder.absolute()) if inside else path
        self._journal.write("artifact", path=str(shown), folder=folder)

    def text(self, text: str, name: str) -> None:
        path = self._file(name)
        path.write_text(without_secrets(text), encoding="utf-8", errors="backslashreplace")
        self.artifact(path, _parent(name))

    def figure(self, figure: Figure, name: str) -> None:
        from feedrate.reporting.picture import save

        path = self._file(name)
        save(figure, path)
        self.artifact(path, _parent(name))

    def note(self, markdown: str) -> None:
        self.tags({"mlflow.note.content": markdown})

    def model(self, module: nn.Module, example: Tensor) -> None:
        if not self._log_model:
            return
        from feedrate.tracking.model import export_model

        path = self._file("model")
        try:
            export_model(module, example, path)
        except Exception as error:  # not every model can be exported; the training was not in vain
            _log.warning("tracking.log_model=true, but the model could not be exported: %s", error)
            self.tags({"feedrate.model_error": str(error)})
        else:
            self._journal.write("model", path=str(path.relative_to(self._folder)))

    def end(self, status: Status, error: str = "") -> None:
        if self._ended:
            return
        self._ended = True
        self._journal.write("end", status=status, error=without_secrets(error))
        patience_s = FILE_PATIENCE_S if self._address.database is not None else PATIENCE_S
        if not self._carrier.finish(SHORT_PATIENCE_S if status == "KILLED" else patience_s):
            state = Delivered.read(self._folder)
            _log.warning(
                "%d records could not be sent to tracking.uri=%s (%s); they are kept. Send them later with\n"
                "  python src/sync.py %s",
                state.left(self._folder), self._address.shown, _first_line(state.error) or "no answer yet",
                shown_path(self._folder),
            )  # fmt: skip
        state = Delivered.read(self._folder)
        for line in state.rejected:
            _log.warning("tracking.uri=%s refused %s", self._address.shown, line)
        for item in state.aside:
            _log.warning("not stored: %s", item["reason"])
        if state.aside:
            _log.warning("everything else is recorded; when that is mended: python src/sync.py %s",
                         shown_path(self._folder))  # fmt: skip

    def _read_back(self) -> dict[str, int]:
        """Of a run that goes on: the last step of each metric, and the values that were left out."""
        last: dict[str, int] = {}
        for event, _ in events(self._folder / JOURNAL):
            for name, value, step, _time in event["points"] if event["event"] == "metrics" else ():
                last[name] = max(step, last.get(name, -1))
                if isinstance(value, str):
                    self._non_finite[name] += 1
        return last

    def _file(self, name: str) -> Path:
        path = self._folder / FILES / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _parent(name: str) -> str:
    return name.rpartition("/")[0]


def _first_line(text: str) -> str:
    return (text.splitlines() or [""])[0].rstrip(".")


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
