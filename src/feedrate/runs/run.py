"""A training run from its configuration to its end: folder and lock, signals, tracker, summary.json, status, resume.

torch is imported only when a run is opened, since that takes seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from feedrate.cli.launch import describe, plain
from feedrate.config import TrainConfig, check
from feedrate.errors import LostWorker
from feedrate.runs.provenance import Origin, command_line
from feedrate.runs.run_folder import RunFolder, read_summary
from feedrate.runs.saved import find_run, mark_dead_runs
from feedrate.system.secrets import learn, mask_files, mask_logs, without_secrets
from feedrate.system.signals import Interruption
from feedrate.tracking import Status, Tracker, open_tracker, run_name, start_uploader

if TYPE_CHECKING:
    import torch

    from feedrate.dataset import Data
    from feedrate.trainer.loop import Trainer

log = logging.getLogger("feedrate")


class Run:
    """One training run; use `with Run.open(settings) as run`.

    Its status in summary.json and in the tracker becomes FINISHED by `finish`, KILLED by a signal or Ctrl-C, and FAILED
    by any other exception, with the error's text.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        from hydra.core.hydra_config import HydraConfig

        hydra = HydraConfig.get()
        fresh = Path(hydra.runtime.output_dir)
        self._overrides = list(hydra.overrides.task)
        self.config: TrainConfig = check(settings)
        # opens the store in another process, so that training never waits for a server
        self._uploader = start_uploader(self.config.tracking)

        import torch  # noqa: F401  before signals are handled: an import could swallow the exception of one

        self._dead = mark_dead_runs(fresh.parent)
        command = without_secrets(command_line(self._overrides))
        resume = self.config.trainer.resume
        earlier = find_run(resume, settings, fresh.parent) if resume else None
        self.folder = RunFolder(earlier or fresh, named_by="trainer.resume" if earlier else "hydra.run.dir")
        self._fresh, self._earlier = fresh, earlier
        started = f"{datetime.now(timezone.utc):%FT%TZ}"
        self.origin = Origin(settings, dict(hydra.runtime.choices), command, started)
        self._summary = self.origin.summary()
        self.checkpoint: dict[str, Any] = {}  # its state; empty for a new run
        self.tracker = Tracker()  # records nothing before `start_tracking`
        self._trainer: Trainer | None = None
        self._loaders: dict[str, Any] = {}
        self._ended = False
        self.interruption = Interruption(self._abandon)

    @classmethod
    @contextmanager
    def open(cls, settings: dict[str, Any]) -> Iterator[Run]:
        """Opens a run with the configuration of `resolve_config`, and ends it, also after an error or a signal."""
        run = cls(settings)
        run.interruption.listen()
        try:
            run.interruption.allow()  # until training begins, a signal ends the run at once
            run._begin()
            yield run
        except BaseException as error:
            run._fail(error)
            raise
        finally:
            run._close()

    def _begin(self) -> None:
        if self._earlier is not None:
            from feedrate.runs import resume

            self.folder.tidy()
            resume.move_log(self._fresh, self._earlier)
            state = resume.load_state(str(self.config.trainer.resume), self._earlier)
            resume.check_config(state, self._earlier, self.origin.config)
            self._summary["run_id"] = read_summary(self._earlier).get("run_id")
            self.checkpoint = state
            log.info("resuming %s after %d steps", self._earlier.name, state["step"])
        self._update()

    def start_loaders(self, data: Data, device: torch.device) -> dict[str, Any]:
        """Loaders by partition, at the checkpoint's position, with the workers for training and validation running.

        Call before the device is used or other threads start: only then is forking safe. They are closed at the end.
        A resumed run refuses other data, unless trainer.resume_changed is set.
        """
        from feedrate.loader import build_loaders, start_loaders
        from feedrate.runs import resume

        if self.checkpoint:
            resume.check_data(self.checkpoint, data, self.config.trainer.resume_changed)
        self.interruption.safe = False  # a half-started worker cannot be ended
        self._loaders = build_loaders(self.config.loader, data, self.config.seed, device)
        if self.checkpoint.get("loader"):
            self._loaders["train"].load_state_dict(self.checkpoint["loader"])
        start_loaders(self._loaders, ("train", "validation"))
        self.interruption.allow()
        return self._loaders

    def start_tracking(self, data: Data) -> None:
        """Opens the tracker, which also closes the records of runs whose process has died."""
        config, model = self.origin.config, self.origin.choices["model"]
        self.tracker = open_tracker(
            self.config.tracking,
            run_name=run_name({**config, "dataset": data.name, "model": model}, self._overrides),
            run_folder=self.folder.path,
            uploader=self._uploader,
        )
        for folder in self._dead:
            log.info("note: %s was killed; it is now marked KILLED", folder.name)
            self.tracker.close_dead(folder)

    def start(self, trainer: Trainer) -> None:
        """Records the start of training; a resumed run's trainer is first set to its checkpoint."""
        from feedrate.runs import record, resume

        self._trainer, model = trainer, trainer.state.model
        parameters, precision = f"{record.num_parameters(model):,}", trainer.precision.name
        log.info("%s with %s parameters, precision %s", type(model).__name__, parameters, precision)
        if self.checkpoint:
            if self.config.trainer.resume_optimizer:
                resume.check_optimizer(self.checkpoint, trainer.state.optimizer)
            trainer.load_state_dict(self.checkpoint)
            record.record_resumed(self.tracker, self.origin, trainer)
        else:
            record.record_start(self.tracker, self.origin, trainer)
        self._update()

    def finish(self) -> None:
        """Records the results of a training that ended well, and waits until they are stored."""
        from feedrate.runs import record

        trainer = self._trainer
        assert trainer is not None
        self.interruption.allow()
        verdict = trainer.verdict()
        record.record_results(self.tracker, self.origin, self.folder.path, trainer, verdict)
        self._update(**record.results(trainer, verdict))  # only now: until here a kill leaves a run to resume
        self.tracker.artifact(self.folder.path / "summary.json")
        self.tracker.artifact(self.folder.checkpoints / "best.pt", "checkpoints")
        if self.config.tracking.log_model:
            self.tracker.model(trainer.state.model, record.example(trainer))
        self._ended = True  # a signal from now on only ends the waiting for the store
        self._end_tracking("FINISHED")
        log.info("%s", record.closing_line(trainer, verdict))
        log.info("%s", record.verdict_words(trainer, verdict))
        log.info("run folder  %s", self.folder.path)
        if self.tracker.url:
            log.info("this run    %s", self.tracker.url)
            log.info("all runs    %s   (start the pages with: make ui)", self.tracker.experiment_url)

    def _fail(self, error: BaseException) -> None:
        """Records a run that did not end well, with the verdict on what was trained."""
        self.interruption.safe = False
        if self._ended:
            return
        killed = isinstance(error, KeyboardInterrupt)
        status: Status = "KILLED" if killed else "FAILED"
        text = (str(error) or "interrupted") if killed else describe(error)
        self._update(status=status, error=text)
        if self._trainer is not None:
            from feedrate.runs import record

            verdict = self._trainer.verdict()
            self._update(**record.loading(self._trainer, verdict))
            if verdict is not None:
                log.info("until then:\n%s", record.verdict_words(self._trainer, verdict))
                self._trainer.record_verdict(verdict)
        # an interrupt while last.pt is replaced leaves last-1.pt
        if isinstance(error, (KeyboardInterrupt, LostWorker)) and any(self.folder.checkpoints.glob("last*.pt")):
            log.info("run folder  %s   (resume it with trainer.resume=auto)", self.folder.path)
        self._end_tracking(status, text)

    def _end_tracking(self, status: Status, error: str = "") -> None:
        self.tracker.end(status, error)
        if self.tracker.run_id not in (None, self._summary["run_id"]):  # known only once the store has answered
            self._update()

    def _close(self) -> None:
        if self._uploader is not None:
            self._uploader.stop()
        if self._loaders:
            from feedrate.loader import close_loaders

            close_loaders(self._loaders, at_once=not self._ended)
        self.folder.release()
        self.interruption.leave()

    def _update(self, **facts: Any) -> None:
        """Adds to summary.json."""
        self._summary |= facts
        if self.tracker.run_id is not None:
            self._summary["run_id"] = self.tracker.run_id
        self.folder.write_summary(self._summary)

    def _abandon(self, text: str) -> None:
        """Called from a thread when this process hangs and is about to be ended."""
        if not self._ended:
            self._update(status="KILLED", error=text)


def resolve_config(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration of the running job; its secrets are masked in logs and in the folder's .hydra/."""
    from hydra.core.hydra_config import HydraConfig

    written = Path(HydraConfig.get().runtime.output_dir) / ".hydra"
    mask_files(written)
    mask_logs()
    settings = plain(cfg, written / "config.yaml")
    learn(settings)
    return settings
