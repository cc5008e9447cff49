"""What training records: `Tracker` appends it to the run's journal, which the uploader's process sends to MLflow.

MLflow is not imported here, but for exporting a model.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil

from feedrate.config import shown_path
from feedrate.system.secrets import learn, masked, without_secrets
from feedrate.system.text import flatten
from feedrate.tracking.address import Address, experiment_link, read_address, run_link
from feedrate.tracking.journal import FILES, JOB_TAG, JOURNAL, PARENT_TAG, Journal, UploadState, events

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from feedrate.config import TrackingConfig
    from feedrate.tracking.uploader import UploaderProcess

Status = Literal["FINISHED", "FAILED", "KILLED"]
COMMIT_TAG = "mlflow.source.git.commit"  # MLflow's own
PARENT_VARIABLE, JOB_VARIABLE = "FEEDRATE_PARENT_RUN", "FEEDRATE_JOB"  # by which a sweep's job knows its parent

ALWAYS_LOGGED = ("loader/wait_pct", "loader/samples_per_s")  # columns of the table of runs

_log = logging.getLogger("feedrate.tracking")


class Tracker:
    """What a run records; without a journal nothing (`tracking=none`). See `open_tracker`.

    No method may be called inside the timed loop. None raises because of a store, and only `end` waits for one.
    """

    def __init__(
        self,
        journal: Journal | None = None,
        address: Address | None = None,
        uploader: UploaderProcess | None = None,
        log_model: bool = False,
    ) -> None:
        self._journal, self._address, self._uploader = journal, address, uploader
        self._log_model = log_model
        self._ended = False
        self._held: dict[str, list[dict[str, Any]]] = {}  # values that may stay constant, see `_is_constant`
        self._last_steps: dict[str, int] = {}
        for event, _ in events(journal.path) if journal is not None else ():
            if event["event"] == "metrics":
                self._last_steps |= dict.fromkeys(event["values"], event["step"])

    @property
    def active(self) -> bool:
        """Whether anything is recorded."""
        return self._journal is not None

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run, None where nothing is recorded or the store has not answered yet."""
        return UploadState.read(self._journal.folder).run_id or None if self._journal is not None else None

    @property
    def url(self) -> str | None:
        """Link to the run's page, None as `run_id`."""
        return self._link(run_link)

    @property
    def experiment_url(self) -> str | None:
        """Link to the table of runs with our columns, None as `run_id`."""
        return self._link(lambda page, experiment_id, _: experiment_link(page, experiment_id))

    def params(self, values: Mapping[str, object]) -> None:
        """Records settings under dotted names (`loader.batch_size`); nested mappings are flattened."""
        words = {k: v if isinstance(v, str) else json.dumps(v, default=str) for k, v in flatten(masked(values)).items()}
        self._write("params", values=words)

    def tags(self, values: Mapping[str, str]) -> None:
        """Records words about the run; a later value replaces an earlier one."""
        self._write("tags", values=masked({key: str(value) for key, value in values.items()}))

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Records values of one step, usually an epoch, rounded to 6 significant digits.

        Values that are not finite are left out, and measurements of loader and computation that are 0 or 100 all the
        time.
        """
        now, logged = time.time_ns() // 1_000_000, {}
        for name, exact in values.items():
            value = float(f"{exact:.6g}")
            if not math.isfinite(value):
                continue
            if self._is_constant(name, value):
                self._held.setdefault(name, []).append({"step": step, "time_ms": now, "values": {name: value}})
            else:
                for held in self._held.pop(name, []):
                    self._write("metrics", **held)
                logged[name] = value
        if logged:
            self._last_steps |= dict.fromkeys(logged, step)
            self._write("metrics", step=step, values=logged)

    def last_step(self, metric: str) -> int:
        """The highest recorded step of a metric, -1 if there is none."""
        return self._last_steps.get(metric, -1)

    def dataset(self, name: str, digest: str, partition: str, samples: int, source: str) -> None:
        """Records which samples of a data set were used; `source` is its folder, URI or class name."""
        self._write("dataset", name=without_secrets(name), digest=digest, partition=partition, samples=samples,
                    source=without_secrets(source))  # fmt: skip

    def artifact(self, path: Path, folder: str = "") -> None:
        """Keeps a copy of a file or folder under `folder`, as it is when it is sent; secrets in it are not masked."""
        if self._journal is not None:
            path, own = path.absolute(), self._journal.folder.absolute()
            # relative where possible, since the folder may be moved with its journal
            shown = path.relative_to(own) if path.is_relative_to(own) else path
            self._write("artifact", path=str(shown), folder=folder)

    def text(self, text: str, name: str) -> None:
        """Keeps `text` as the file `name`; secrets are masked."""
        if self._journal is not None:
            path = self._file(self._journal, name)
            path.write_text(without_secrets(text), encoding="utf-8", errors="backslashreplace")
            self.artifact(path, name.rpartition("/")[0])

    def figure(self, figure: Figure, name: str) -> None:
        """Keeps a picture as the file `name` (ending in .png)."""
        if self._journal is not None:
            from feedrate.reporting.picture import save

            path = self._file(self._journal, name)
            save(figure, path)
            self.artifact(path, name.rpartition("/")[0])

    def note(self, markdown: str) -> None:
        """Sets the description at the top of the run's page."""
        self.tags({"mlflow.note.content": markdown})

    def model(self, module: nn.Module, example: Tensor) -> None:
        """Keeps a copy of the model in MLflow's form as the artifact `model`, if `tracking.log_model` is set.

        `example` is a batch `(B, ...)`; with B of at least 2 the batch size stays free in the export, which takes
        seconds. A model that cannot be exported is a warning and the tag `feedrate.model_error`.
        """
        if self._journal is None or not self._log_model:
            return
        import mlflow.pytorch
        import torch

        path = self._file(self._journal, "model")
        shutil.rmtree(path, ignore_errors=True)
        plain = copy.deepcopy(getattr(module, "_orig_mod", module)).cpu().eval()
        version = torch.__version__.partition("+")[0]  # stated, since MLflow takes eight seconds to find it out
        about = {"input_example": example.detach().cpu().numpy(), "pip_requirements": [f"torch=={version}"]}
        try:
            with torch.no_grad():
                mlflow.pytorch.save_model(plain, path, **about)
        except Exception as error:  # not every model can be exported
            _log.warning("tracking.log_model=true, but the model could not be exported: %s", error)
            self.tags({"feedrate.model_error": str(error)})
        else:
            self.artifact(path, "model")

    def close_dead(self, folder: Path) -> None:
        """Uploads the record of another run, whose process is gone, and marks it as KILLED if it has no end."""
        if self._uploader is not None and (folder / JOURNAL).exists():
            self._uploader.upload_dead_run(folder)

    def end(self, status: Status, error: str = "") -> None:
        """Closes the run and waits until it is uploaded, or until there is no progress; later calls do nothing."""
        if self._ended or self._journal is None or self._address is None or self._uploader is None:
            return
        self._ended = True
        self._write("end", status=status, error=without_secrets(error))
        folder, store = self._journal.folder, self._address.shown
        trouble = self._uploader.finish(folder, hurry=status == "KILLED")
        state = UploadState.read(folder)
        if trouble:
            reason = _first_line(trouble)
            _log.warning("%d records could not be sent to tracking.uri=%s (%s)", state.left(folder), store, reason)
        for line in state.rejected:
            _log.warning("tracking.uri=%s refused %s", store, line)
        for item in state.aside:
            _log.warning("not stored: %s", item["reason"])
        if state.aside or trouble:
            _log.warning("what is left is kept; to send it later: python src/sync.py %s", shown_path(folder))

    def _write(self, event: str, **content: Any) -> None:
        if self._journal is not None:
            self._journal.write(event, **content)

    def _is_constant(self, name: str, value: float) -> bool:
        """Whether a measurement has been 0 or 100 all the time; such values are held back until another one comes."""
        measured = name.startswith(("loader/", "compute/", "verdict/")) and name not in ALWAYS_LOGGED
        before = [held["values"][name] for held in self._held.get(name, ())]
        return measured and name not in self._last_steps and value in (0.0, 100.0) and {value}.issuperset(before)

    def _link(self, link: Callable[[str, str, str], str]) -> str | None:
        if self._journal is None or self._address is None:
            return None
        state = UploadState.read(self._journal.folder)
        return link(self._address.page, state.experiment_id, state.run_id) if state.run_id else None

    @staticmethod
    def _file(journal: Journal, name: str) -> Path:
        path = journal.folder / FILES / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def start_uploader(config: TrackingConfig) -> UploaderProcess | None:
    """Starts to open the store in a process of its own; None where nothing is recorded."""
    if config.uri is None:
        return None
    from feedrate.tracking.uploader import UploaderProcess

    return UploaderProcess(config)


def open_tracker(
    config: TrackingConfig,
    *,
    run_name: str,
    run_folder: Path,
    uploader: UploaderProcess | None = None,
) -> Tracker:
    """Starts to record a run, or resumes the one whose journal is in `run_folder`; without `config.uri` nothing.

    The name is used unless `config.run_name` is set. Raises UserError if the settings are wrong.
    """
    uploader = uploader or start_uploader(config)
    if uploader is None or config.uri is None:
        return Tracker()
    learn({"uri": config.uri})
    address = read_address(config.uri, config.artifacts)
    if trouble := uploader.opened():
        _log.info("note: %s: the record is kept in %s, and sent when that is possible",
                  _first_line(trouble), shown_path(run_folder))  # fmt: skip
    run_folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(run_folder)
    tracker = Tracker(journal, address, uploader, config.log_model)
    if journal.existed:
        journal.write("resume")
    else:
        tags = {
            "mlflow.user": psutil.Process().username(),
            "mlflow.source.name": shown_path(Path(sys.argv[0] or "python")),
            "mlflow.source.type": "LOCAL",
            "feedrate.run_folder": shown_path(run_folder),
        }
        if parent := os.environ.get(PARENT_VARIABLE):
            tags |= {PARENT_TAG: parent, JOB_TAG: os.environ.get(JOB_VARIABLE, "")}
        journal.begin(config.run_name or run_name, tags, config)
    uploader.upload(run_folder, config.system_metrics)
    return tracker


def _first_line(text: str) -> str:
    return (text.splitlines() or [""])[0].rstrip(".")
