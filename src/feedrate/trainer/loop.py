"""The trainer: epochs of training steps, each followed by a validation and a checkpoint.

A signal may stop it between two optimizer steps, while it waits for a batch, and during validation.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from feedrate.config import TrainerConfig
from feedrate.dataset import Data
from feedrate.errors import LostWorker, UserError
from feedrate.loader import BatchInfo, ToDevice
from feedrate.system.device import explained, has_streams
from feedrate.system.signals import Interrupted, Interruption
from feedrate.task.task import Meter, Task
from feedrate.timing import Clock, EpochTimes
from feedrate.timing.ceilings import metrics as metrics_of
from feedrate.timing.verdict import Verdict
from feedrate.tracking import Tracker
from feedrate.trainer import checkpoint
from feedrate.trainer.device import choose_precision
from feedrate.trainer.evaluate import validate
from feedrate.trainer.forward import Forward, cause_of
from feedrate.trainer.guard import LossGuard
from feedrate.trainer.progress import Progress
from feedrate.trainer.pruning import reason_to_prune
from feedrate.trainer.schedule import Schedule
from feedrate.trainer.state import Result, RunState
from feedrate.trainer.step import TrainingStep
from feedrate.trainer.throughput_history import ThroughputHistory

log = logging.getLogger("feedrate")
RECENT = 50  # steps that the live line averages over


class Trainer:
    """Trains one model on one data set.

    Checkpoints are written into `folder`; the tracker gets an epoch's metrics at its end, never in between.
    """

    def __init__(
        self,
        config: TrainerConfig,
        data: Data,
        loaders: Mapping[str, Any],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        device: torch.device,
        folder: Path,
        tracker: Tracker,
        interruption: Interruption,
        packable: str = "",
    ) -> None:
        self.config, self.data, self.loaders, self.device = config, data, loaders, device
        self.precision = choose_precision(config.precision, device)
        self.task = Task(data.targets, config.label_smoothing, config.top5)
        self.clock = Clock(device, config.warmup_steps)
        self.throughput = ThroughputHistory(loaders["train"], packable, device)
        self.forward = Forward(model, data, device, self.precision, config.compile, config.channels_last)
        scaler = torch.amp.GradScaler(device.type, enabled=self.precision.scaled)
        self.state = RunState(model, optimizer, schedule, scaler, loaders["train"], data, self.task, device)
        self._guard = LossGuard(optimizer, device, loaders["train"])
        self._step = TrainingStep(config, self.forward, self.task, self.state, self._guard, self.clock)
        batches = max(1, len(loaders["train"]))
        most = (config.max_steps or math.inf) / math.ceil(batches / config.accumulate)
        self._progress = Progress(config.max_epochs, batches, min(config.max_epochs, most))
        self._folder, self._tracker, self._stop = folder, tracker, interruption
        self._inline = not loaders["train"].num_workers
        self._verdict_logged = False
        self._saved_at = time.perf_counter()
        self._earlier_s = 0.0  # trained before the run was resumed
        self._begun: float | None = None  # when `fit` was called
        self._ended: float | None = None

    @property
    def result(self) -> Result:
        """Metrics and best epoch so far."""
        return self.state.result

    @property
    def seconds(self) -> float:
        """Training time of the whole run, including what was trained before it was resumed."""
        end = self._ended or time.perf_counter()
        return self._earlier_s + (end - self._begun if self._begun is not None else 0.0)

    def fit(self) -> Result:
        """Trains until max_epochs, max_steps or early stopping; after `load_state_dict`, from there.

        Before Interrupted (a signal) and, where possible, LostWorker the checkpoint of the last step is written.
        """
        state = self.state
        self._begun = time.perf_counter()
        self._stop.safe = False
        self._stop.check()
        self._progress.begin(state.epoch + state.batches / max(1, len(self.loaders["train"])))
        if state.random is not None:
            checkpoint.set_random_state(state.random, self.device)
        try:
            while state.epoch < self.config.max_epochs and not state.result.stopped:
                times = self._run_epoch(state.epoch)
                self._report_epoch(times)
                self._stop.check()
                state.next_epoch()
            if state.result.stopped:
                log.info(state.result.stopped)
        except Interrupted:
            self._save_within_epoch()
            raise
        except (RuntimeError, LostWorker) as error:
            # torch reports a worker's death wherever the main process is, also in the middle of a step
            cause = error if isinstance(error, LostWorker) else cause_of(error)
            if cause is not None and explained(error) is None and self._stop.safe:  # the device still works
                self._save_within_epoch()
            if cause is None or cause is error:
                raise
            raise cause from error
        finally:
            self._stop.safe = False
            self._ended = time.perf_counter()
            self._progress.close()
        return state.result

    def _run_epoch(self, epoch: int) -> EpochTimes:
        """Training (or the rest of it), validation, checkpoint."""
        clock, state, result = self.clock, self.state, self.state.result
        clock.begin()
        self.throughput.begin()
        if state.phase == "training":
            state.begin_training(last=self._is_last(epoch))
            self._train_epoch(epoch)
            self.throughput.trained()
            state.phase = "validation"
        state.random = checkpoint.random_state(self.device)  # a validation that is interrupted is repeated from there
        self._guard.read()
        if part := state.within_epoch:  # max_steps ended the epoch early: a run with more steps resumes here
            self._save()
        metrics = {f"train/{name}": value for name, value in state.meter.metrics().items()}
        if (rate := state.optimizer.param_groups[0].get("lr")) is not None:
            metrics["train/learning_rate"] = float(rate)
        if has_streams(self.device):
            metrics["device/peak_memory_mb"] = torch.accelerator.max_memory_allocated(self.device) / 1e6
        clock.skip()  # reading the metrics has waited for the device

        self._stop.check()
        validation = self.evaluate("validation")
        metrics |= {f"validation/{name}": value for name, value in validation.metrics().items()}
        clock.lap("evaluation")

        state.schedule.epoch(metrics["validation/loss"])
        times = clock.epoch()
        self.throughput.end(times)
        if times.enough:
            metrics |= metrics_of(times, self.throughput.setup(times))
        if epoch == 0 and clock.first_batch_s is not None:
            metrics["loader/first_batch_s"] = clock.first_batch_s
        result.add(epoch, metrics, validation)
        result.stopped = self._reason_to_stop(epoch)
        if not result.stopped:
            result.stopped = reason_to_prune(epoch, metrics, self.config.max_epochs)
            result.pruned = bool(result.stopped)
        state.phase, state.random = "done", None
        if not part:
            self._save()
        if result.best_epoch == epoch:
            checkpoint.copy(self._folder, "last", "best")
        clock.lap("checkpoint")
        return times

    def _train_epoch(self, epoch: int) -> None:
        """Trains on the epoch's batches, or the rest of them.

        A signal may stop the run while it waits for a batch, and between two optimizer steps.
        """
        if self._finished():  # resumed within an epoch, with a lower max_steps
            return
        state, loader = self.state, self.loaders["train"]
        state.model.train()
        batches = iter(ToDevice(loader, self.device, self.clock, self.forward.check(loader)))  # starts workers
        self._may_stop()
        for batch in batches:
            self._stop.safe = False  # the state changes from here on
            state.random = None
            samples, info = len(batch.X), batch.info
            loss = self._step(batch)
            if self._progress.due:  # reading the loss waits for the device: twice a second, and only in a terminal
                self._progress.step(epoch, state.batches, float(loss.detach()), self.clock.recent(RECENT))
            # Freeing a tensor releases the GIL. Done here it belongs to the step, and is not counted as waiting.
            del batch
            self._after_step(samples, info)
            if self._finished():
                break
            if self._step.window.empty:  # no checkpoint lies within a window, so none holds gradients
                self._between_optimizer_steps()
        self._stop.safe = False
        self.clock.skip()
        if not state.meter.samples:
            raise UserError("the training loader gave no batch; lower loader.batch_size or set loader.drop_last=false")
        if not self._step.window.empty:  # the epoch's last batches do not fill a window
            self._step.optimize()

    def _after_step(self, samples: int, info: BatchInfo) -> None:
        """Notes the times of a step; at the log interval it also checks that the losses so far were finite."""
        if self.state.batches % self.config.log_every == 0:
            self._guard.read()
        self.throughput.step()
        self.clock.step(samples, info.nbytes, info.timing)
        if info.slow:
            self.throughput.add_slow_samples(info.slow)

    def _between_optimizer_steps(self) -> None:
        """Stops the run after a signal, writes a checkpoint if one is due, and lets the next signal stop it at once."""
        self._stop.check()
        every = self.config.checkpoint_every_s
        if every is not None and time.perf_counter() - self._saved_at >= every:
            self.clock.skip()
            self._save()
            self.clock.lap("checkpoint")
        self._may_stop()

    def evaluate(self, partition: str) -> Meter:
        """Loss and metrics of a partition with the present weights."""
        loader = self.loaders[partition]
        # every validation sees the same samples with the same randomness
        loader.set_epoch(0, then=None if self._is_last(self.state.epoch) else 0)
        # the state to save does not change meanwhile, so a signal may stop the run anywhere
        meter = validate(self.forward, loader, self.task, started=self._stop.allow)
        self._stop.safe = False
        return meter

    def _report_epoch(self, times: EpochTimes) -> None:
        """Metrics to the tracker, a line to the terminal; once, while others follow, also a first verdict."""
        epoch, result = self.state.epoch, self.state.result
        best = result.best_figures() if result.best_epoch == epoch else {}
        self._tracker.metrics({**result.metrics, **best}, epoch)
        self._progress.epoch(epoch, result.metrics, float(times.elapsed.sum() / 1e9))
        if self._verdict_logged or result.stopped or epoch + 1 >= self.config.max_epochs:
            return
        if (verdict := self.throughput.verdict()) is not None:
            log.info("after epoch %d:\n%s", epoch + 1, verdict)
            self.record_verdict(verdict)
            self._verdict_logged = True

    def _may_stop(self) -> None:
        """The state is that of a finished step, and stays so until the next batch has come."""
        if self._inline:  # an interrupted sample leaves the global generators seeded for it
            self.state.random = checkpoint.random_state(self.device)
        self._stop.allow()

    def _is_last(self, epoch: int) -> bool:
        """Whether an epoch is the run's last one, as far as that is known before it."""
        rest = -(-len(self.loaders["train"]) // self.config.accumulate)
        max_steps = self.config.max_steps
        return epoch + 1 >= self.config.max_epochs or (max_steps is not None and self.state.step + rest >= max_steps)

    def _finished(self) -> bool:
        return self.config.max_steps is not None and self.state.step >= self.config.max_steps

    def _reason_to_stop(self, epoch: int) -> str:
        patience, result = self.config.early_stopping, self.state.result
        # where no epoch's loss was finite it is unknown whether it fell
        if patience and math.isfinite(result.best["validation/loss"]) and epoch - result.best_epoch >= patience:
            return f"stopped early: validation/loss has not fallen for {patience} epochs"
        return f"stopped at trainer.max_steps={self.config.max_steps}" if self._finished() else ""

    def verdict(self) -> Verdict | None:
        """The verdict on all that was trained, also in an unfinished epoch; None after too few steps."""
        self.throughput.end_run(self.clock.epoch())
        return self.throughput.verdict()

    def record_verdict(self, verdict: Verdict) -> None:
        """The verdict as tags, which MLflow's table of runs can show and search."""
        remedy = verdict.remedies[0].override if verdict.remedies else "none"
        self._tracker.tags({"feedrate.verdict": verdict.kind, "feedrate.remedy": remedy})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes a checkpoint's state before `fit`; the present configuration says whether training has ended."""
        ours = self.state
        ours.load_state_dict(state, self.config.resume_optimizer)
        times = state.get("times_s", {})
        self.clock.add_totals(times.get("phases", {}))
        self._earlier_s = float(times.get("all", 0.0))
        if state["phase"] == "done":
            epoch = int(state["epoch"])
            if not ours.result.pruned:
                ours.result.stopped = self._reason_to_stop(epoch)
            if ours.result.best_epoch == epoch:  # a kill may have come between the two checkpoints of that epoch's end
                checkpoint.save(self._folder, "best", state)

    def _save(self) -> None:
        self._stop.safe = False
        self._guard.read()
        with self._stop.saving():
            times = {"phases": self.clock.totals_s(), "all": self.seconds}
            state = {**self.state.state_dict(), "times_s": times}
            checkpoint.save(self._folder, "last", state, self.config.keep_checkpoints)
        self._saved_at = time.perf_counter()

    def _save_within_epoch(self) -> None:
        if self.state.phase != "done":  # the end of an epoch is saved already
            self.clock.skip()
            self._save()
