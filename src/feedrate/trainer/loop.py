"""The training loop: steps, validation after each epoch, checkpoints; every moment is told to the clock.

Metrics are collected in a list here and handed to the tracker between epochs, never inside the timed loop.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from feedrate.config import TrainerConfig
from feedrate.dataset import Data
from feedrate.errors import UserError
from feedrate.loader import Batch, Receipt, ToDevice
from feedrate.timing import Clock, Point, points
from feedrate.trainer import checkpoint
from feedrate.trainer.device import Precision
from feedrate.trainer.guard import LossGuard
from feedrate.trainer.inputs import Inputs
from feedrate.trainer.interrupt import Interrupted, Interruption
from feedrate.trainer.progress import Progress
from feedrate.trainer.schedule import Schedule
from feedrate.trainer.task import Meter, Task
from feedrate.trainer.unlabelled import facts_of

log = logging.getLogger("feedrate")
RECENT = 50  # steps that the live line averages over


@dataclass
class Result:
    """What came of a run.

    Attributes:
        metrics: by name, of the last epoch.
        history: metrics of every epoch.
        best_epoch: epoch (from 0) with the lowest validation loss.
        best: its metrics.
        confusion: rows are true classes; of the last epoch, None for regression.
        per_class: samples and accuracy of each class in the validation partition.
        stopped: why training ended before max_epochs, or an empty text.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best: dict[str, float] = field(default_factory=dict)
    confusion: list[list[int]] | None = None
    per_class: list[dict[str, Any]] | None = None
    stopped: str = ""


class Trainer:
    """Trains one model on one data set.

    Args:
        config: conf/trainer.
        loaders: by partition; batches are (X, y).
        schedule, optimizer: built for `model`'s parameters.
        folder: checkpoints are written here as last.pt and best.pt.
        send: takes the points of an epoch.
        interruption: asked after every step whether to stop.
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
        precision: Precision,
        folder: Path,
        send: Callable[[list[Point]], None],
        interruption: Interruption,
    ) -> None:
        self.config, self.data, self.loaders, self.device = config, data, loaders, device
        self.model, self.optimizer, self.schedule, self.precision = model, optimizer, schedule, precision
        self.task = Task(data.targets, config.label_smoothing, config.top5)
        self.clock = Clock(device, config.warmup_steps)
        self._inputs = Inputs(data, device)
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision.scaled)
        self._guard = LossGuard(optimizer, device, self._name)
        self._folder, self._send, self._stop = folder, send, interruption
        # torch.compile wraps the module; weights are saved and loaded by the names of the plain one
        self._forward: Callable[..., torch.Tensor] = torch.compile(model) if config.compile else model
        self.step = 0  # optimizer steps so far
        self.result = Result()
        self._last: Receipt | None = None
        # where the run is: epoch, 'training', 'validation' or 'done', batches and sums of the epoch so far
        self._epoch_number, self._phase, self._batches = 0, "training", 0
        self._meter = self.task.meter(device)
        self._position: dict[str, Any] | None = None  # of the loader, before the epoch's first batch
        self._saved_at = time.perf_counter()
        self._random: dict[str, Any] | None = None

    def fit(self) -> Result:
        """Trains until max_epochs, max_steps or early stopping; goes on where `load_state_dict` left it.

        Raises:
            UserError: the loss is not finite, a sample cannot be used, or the model does not fit the data.
            Interrupted: a signal came; the checkpoint of the last step is written.
        """
        progress = Progress(self.config.max_epochs, self._steps_per_epoch())
        if self._random is not None:
            checkpoint.set_random_state(self._random)
        try:
            while self._epoch_number < self.config.max_epochs and not self.result.stopped:
                metrics, wait_ms = self._epoch(self._epoch_number, progress)
                self._send(points(metrics, self._epoch_number))
                progress.epoch(self._epoch_number, metrics, wait_ms)
                self._stop.check()
                self._next_epoch()
            if self.result.stopped:
                log.info(self.result.stopped)
        except Interrupted:
            if self._phase != "done":  # the end of an epoch is saved already
                self._save()
            raise
        except RuntimeError as error:
            lost = self._lost_worker(error)  # torch raises that wherever the main process is when a worker dies
            if lost is None:
                raise
            raise lost from error
        finally:
            self._stop.safe = False
            progress.close()
        return self.result

    def digests(self) -> dict[str, str]:
        """Digests of what the training loader delivered; none from a loader without a seed."""
        loader = self.loaders["train"]
        if getattr(loader, "seed", None) is None:
            return {}
        content = loader.content_digest()
        return {"order_digest": loader.order_digest(), **({"content_digest": content} if content else {})}

    def example(self) -> torch.Tensor:
        """(2, ...) prepared samples of the validation partition, on the device."""
        X = torch.stack([torch.as_tensor(self.data.partition["validation"][i % 2][0]) for i in range(2)])
        return self._inputs(X.to(self.device))

    # -----------------------------------------------------------------------------------------------------
    # one epoch
    # -----------------------------------------------------------------------------------------------------

    def _next_epoch(self) -> None:
        self._epoch_number, self._phase, self._batches = self._epoch_number + 1, "training", 0
        self._meter = self.task.meter(self.device)
        self._last = self._position = None

    def _epoch(self, epoch: int, progress: Progress) -> tuple[dict[str, float], float]:
        loader, clock, result = self.loaders["train"], self.clock, self.result
        clock.begin()
        if self._phase == "training":
            if hasattr(loader, "set_epoch"):
                loader.set_epoch(epoch)
            if hasattr(loader, "state_dict"):
                self._position = loader.state_dict()
            self._train(epoch, loader, progress)
            self._phase = "validation"
        self._guard.read()
        metrics = {f"train/{name}": value for name, value in self._meter.metrics().items()}
        metrics["train/learning_rate"] = float(self.optimizer.param_groups[0]["lr"])
        clock.skip()  # reading the meter waited for the device; that was neither waiting for data nor evaluation

        self._stop.check()
        self._stop.safe = True  # what is to be saved no longer changes
        checked = self.evaluate("validation")
        self._stop.safe = False
        metrics.update({f"validation/{name}": value for name, value in checked.metrics().items()})
        result.confusion, result.per_class = checked.confusion(), checked.per_class()
        clock.lap("evaluation")

        self.schedule.epoch(metrics["validation/loss"])
        times = clock.epoch()
        metrics.update(times.metrics(max(1, getattr(loader, "num_workers", 0))))
        if epoch == 0 and clock.first_batch_s is not None:
            metrics["loader/first_batch_s"] = clock.first_batch_s
        self._judge(epoch, metrics, result)
        result.history.append(metrics)
        result.metrics, self._phase = metrics, "done"
        self._save()
        if result.best_epoch == epoch:
            checkpoint.copy(self._folder, "last", "best")
        clock.lap("checkpoint")
        return metrics, times.mean_wait_ms()

    def _train(self, epoch: int, loader: Any, progress: Progress) -> None:
        self.model.train()
        meter, clock, accumulate = self._meter, self.clock, self.config.accumulate
        pending, self._stop.safe = False, True
        for batch in ToDevice(loader, self.device, clock, self._check("train")):
            self._stop.safe = False
            number = self._batches
            outputs, loss = self._outputs(batch)
            self._guard.look(loss, self.step, batch.receipt)
            self._scaler.scale(loss / accumulate).backward()
            pending = (number + 1) % accumulate != 0
            if not pending:
                self._optimize()
            meter.update(loss, outputs, batch.y)
            self._last, self._batches = batch.receipt, number + 1
            if (number + 1) % self.config.log_every == 0:
                self._guard.read()
            if progress.due:  # reading the loss waits for the device, twice a second, and only in a terminal
                progress.step(epoch, number, float(loss.detach()), *clock.recent(RECENT))
            clock.lap("compute")
            clock.step(len(batch.X), batch.nbytes, batch.receipt.load_ns if batch.receipt else 0)
            if self._finished():
                break
            if not pending:
                self._stop.check()
                self._save_if_due()
                self._stop.safe = True
        self._stop.safe = False
        if not meter.samples:
            raise UserError("the training loader gave no batch; lower loader.batch_size or set loader.drop_last=false")
        if pending:  # the epoch's last batches do not fill an accumulation window
            self._optimize()

    def _optimize(self) -> None:
        if self.config.clip_norm is not None:
            self._scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self._guard.before_step(self.precision.scaled)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.schedule.step()

    @torch.no_grad()
    def evaluate(self, partition: str) -> Meter:
        """One pass over a partition with the present weights."""
        self.model.eval()
        meter = self.task.meter(self.device)
        if hasattr(self.loaders[partition], "set_epoch"):
            self.loaders[partition].set_epoch(0)  # every validation sees the same samples with the same randomness
        for batch in ToDevice(self.loaders[partition], self.device, None, self._check(partition)):
            outputs, loss = self._outputs(batch)
            meter.update(loss, outputs, batch.y)
        return meter

    # -----------------------------------------------------------------------------------------------------
    # after an epoch
    # -----------------------------------------------------------------------------------------------------

    def _judge(self, epoch: int, metrics: dict[str, float], result: Result) -> None:
        if not result.best or metrics["validation/loss"] < result.best["validation/loss"]:
            result.best_epoch, result.best = epoch, metrics
        patience = self.config.early_stopping
        if patience is not None and epoch - result.best_epoch >= patience:
            result.stopped = f"stopped early: validation/loss has not fallen for {patience} epochs"
        elif self._finished():
            result.stopped = f"stopped at trainer.max_steps={self.config.max_steps}"

    # -----------------------------------------------------------------------------------------------------
    # checkpoints
    # -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that decides how the run goes on, as tensors and plain values."""
        loader = self.loaders["train"]
        position = self._position
        if self._last is not None:
            position = loader.state_dict(self._last)
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self._scaler.state_dict(),
            "random": checkpoint.random_state(),
            "loader": position,
            "epoch": self._epoch_number,
            "phase": self._phase,
            "batches": self._batches,
            "meter": self._meter.state_dict(),
            "step": self.step,
            "result": asdict(self.result),
            "data_digest": self.data.digest,
            "data": facts_of(self.data),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up a state of `state_dict` before `fit`, which sets the random generators; the loader takes its own."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self._scaler.load_state_dict(state["scaler"])
        self.step, self.result = int(state["step"]), Result(**state["result"])
        self._epoch_number, self._phase = int(state["epoch"]), str(state["phase"])
        self._batches = int(state["batches"])
        self._meter.load_state_dict(state["meter"])
        if self._phase == "done":
            if self.result.best_epoch == self._epoch_number:  # a kill may have come between the two
                checkpoint.copy(self._folder, "last", "best")
            self._next_epoch()
        if state["loader"] is None and self._phase == "training" and self._batches:
            log.info("note: loader=torch has no position: the epoch that was interrupted begins anew")
            self._batches, self._meter = 0, self.task.meter(self.device)
        elif self._phase == "training" and state["loader"] and state["loader"]["position"] >= self.loaders["train"].end:
            self._phase = "validation"  # it stopped between the epoch's last step and its validation
        self._random = state["random"]

    def _save(self) -> None:
        self._stop.safe = False
        self._guard.read()
        state = self.state_dict()
        about = {
            **{name: state[name] for name in ("epoch", "phase", "batches", "step", "data_digest")},
            "position": state["loader"]["position"] if state["loader"] else None,
            "metrics": self.result.metrics,
        }
        checkpoint.save(self._folder, "last", state, about, self.config.keep_checkpoints)
        self._saved_at = time.perf_counter()

    def _save_if_due(self) -> None:
        every = self.config.checkpoint_every_s
        if every is not None and time.perf_counter() - self._saved_at >= every:
            self._save()
            self.clock.lap("checkpoint")

    # -----------------------------------------------------------------------------------------------------
    # small parts
    # -----------------------------------------------------------------------------------------------------

    def _outputs(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        X = self._inputs(batch.X)
        try:
            with self._autocast():
                outputs = self._forward(X)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"the device ran out of memory on a batch of {len(X)} samples; lower loader.batch_size, and raise "
                "trainer.accumulate by the same factor to keep the result"
            ) from error
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            if isinstance(error, UserError) or self._lost_worker(error):
                raise
            name, text = type(self.model).__name__, str(error).strip().splitlines()
            raise UserError(
                f"model: {name} failed on X of shape {tuple(X.shape)}: {text[0] if text else type(error).__name__}"
            ) from error
        with self._autocast():
            return outputs, self.task.loss(outputs, batch.y)

    def _lost_worker(self, error: Exception) -> UserError | None:
        loaders = [loader for loader in self.loaders.values() if hasattr(loader, "lost_worker")]
        return next((lost for loader in loaders if (lost := loader.lost_worker(error))), None)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.precision.dtype)

    def _steps_per_epoch(self) -> int:
        return max(1, len(self.loaders["train"]))

    def _finished(self) -> bool:
        return self.config.max_steps is not None and self.step >= self.config.max_steps

    def _check(self, partition: str) -> Callable[[Batch], None]:
        return lambda batch: self._inputs.check(batch.X, batch.y, lambda: self._name(batch.receipt, partition))

    def _name(self, receipt: Receipt | None, partition: str = "train") -> str:
        """The samples of a batch, for an error."""
        if receipt is None:
            return "unknown samples (loader=feedrate names them)"
        IDs = self.loaders[partition].IDs(receipt)
        return ", ".join(map(repr, IDs[:8])) + (f", ... ({len(IDs)} in all)" if len(IDs) > 8 else "")
