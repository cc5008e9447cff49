"""The training loop: steps, validation after each epoch, checkpoints; every moment is told to the clock.

Metrics are collected in a list here and handed to the tracker between epochs, never inside the timed loop.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from feedrate.config import TrainerConfig
from feedrate.dataset import Data
from feedrate.dataset.subset import size_of
from feedrate.errors import LostWorker, UserError
from feedrate.loader import ToDevice
from feedrate.loader.device import has_streams, single
from feedrate.system.device_errors import explained
from feedrate.system.signals import Interrupted, Interruption
from feedrate.task.task import Meter, Task
from feedrate.timing import Clock, EpochTimes
from feedrate.timing.ceilings import metrics as metrics_of
from feedrate.timing.verdict import FEW_STEPS, Verdict
from feedrate.tracking.point import Point, points
from feedrate.trainer import checkpoint
from feedrate.trainer.accumulation import AccumulationWindow
from feedrate.trainer.device import Precision
from feedrate.trainer.forward import Forward, names, not_finite
from feedrate.trainer.guard import LossGuard
from feedrate.trainer.progress import Progress
from feedrate.trainer.schedule import Schedule
from feedrate.trainer.state import Result, RunState
from feedrate.trainer.throughput_history import ThroughputHistory

log = logging.getLogger("feedrate")
RECENT = 50  # steps that the live line averages over
STOPPED_EARLY, STOPPED_AT = "stopped early: validation/loss has not fallen", "stopped at trainer.max_steps="
MORE_MEMORY = "lower loader.batch_size, and raise trainer.accumulate by the same factor to keep the result"


class Trainer:
    """Trains one model on one data set.

    Args:
        config: conf/trainer.
        loaders: by partition; batches are (X, y).
        schedule, optimizer: built for `model`'s parameters.
        folder: checkpoints are written here as last.pt and best.pt.
        send: takes the points of an epoch.
        interruption: asked after every step whether to stop.
        advise: takes epoch and metrics after each epoch, and gives the reason to end training there, or an empty text.
        packable: see timing.verdict.Setup.
        told: takes the verdict on the first epoch, while it can still help.
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
        advise: Callable[[int, Mapping[str, float]], str] = lambda epoch, metrics: "",
        packable: str = "",
        told: Callable[[Verdict], None] = lambda verdict: None,
    ) -> None:
        self.config, self.data, self.loaders, self.device = config, data, loaders, device
        self.task = Task(data.targets, config.label_smoothing, config.top5)
        self.clock = Clock(device, config.warmup_steps)
        self.forward = Forward(model, data, device, precision, config.compile, MORE_MEMORY, config.channels_last)
        self.state = RunState(
            model,
            optimizer,
            schedule,
            torch.amp.GradScaler(device.type, enabled=precision.scaled),
            loaders["train"],
            data,
            lambda: self.task.meter(device),
            device,
        )
        self._window = AccumulationWindow(config.accumulate)
        self._guard = LossGuard(
            optimizer,
            device,
            lambda info: names(loaders["train"], info),
            lambda info: not_finite(loaders["train"], info),
        )
        self._told = False  # of a validation loss that is not finite
        self._scaled = precision.scaled
        self._inline = not loaders["train"].num_workers
        self._folder, self._send, self._stop, self._advise = folder, send, interruption, advise
        self._tell: Callable[[Verdict], None] | None = told
        self.account = ThroughputHistory(loaders["train"], packable)
        self._saved_at = time.perf_counter()
        self._earlier_s, self._begun = 0.0, None  # type: float, float | None

    @property
    def result(self) -> Result:
        return self.state.result

    @property
    def seconds(self) -> float:
        """Of the whole run: what counts of its interrupted parts, and the time since `fit` began."""
        return self._earlier_s + (time.perf_counter() - self._begun if self._begun is not None else 0.0)

    def fit(self) -> Result:
        """Trains until max_epochs, max_steps or early stopping; goes on where `load_state_dict` left it.

        Raises:
            UserError: a training loss is not finite, a sample cannot be used, or the model does not fit the data.
            LostWorker: a process that loads has died; the checkpoint of the last step is written where it can be.
            Interrupted: a signal came; the checkpoint of the last step is written.
        """
        state = self.state
        self._begun = time.perf_counter()
        self._stop.safe = False
        self._stop.check()
        progress = Progress(self.config.max_epochs, max(1, len(self.loaders["train"])))
        if state.random is not None:
            checkpoint.set_random_state(state.random_state(), self.device)
        try:
            while state.epoch < self.config.max_epochs and not state.result.stopped:
                metrics, times = self._epoch(state.epoch, progress)
                best = state.result.best_figures() if state.result.best_epoch == state.epoch else {}
                self._send(points({**metrics, **best}, state.epoch))
                progress.epoch(state.epoch, metrics, times.mean_wait_ms(), float(times.elapsed.sum() / 1e9))
                self._tell_verdict()
                self._stop.check()
                state.next_epoch()
            if state.result.stopped:
                log.info(state.result.stopped)
        except Interrupted:
            if state.phase != "done":  # the end of an epoch is saved already
                self.clock.skip()
                self._save()
            raise
        except (RuntimeError, LostWorker) as error:
            # torch raises that wherever the main process is when a worker dies, also in the middle of a step
            told = error if isinstance(error, LostWorker) else self.forward.explained(error)
            if told is not None and explained(error) is None and self._stop.safe and state.phase != "done":
                self.clock.skip()
                self._save()
            if told is None or told is error:
                raise
            raise told from error
        finally:
            self._stop.safe = False
            progress.close()
        return state.result

    def verdict(self) -> Verdict | None:
        """On what was trained, also where that was broken off; None where those are too few steps."""
        self.account.broken_off(self.clock.epoch())
        return self.account.verdict()

    def digests(self) -> dict[str, str]:
        """Digests of what the training loader delivered; none from a loader without a seed."""
        loader = self.loaders["train"]
        if loader.seed is None:
            return {}
        content = loader.content_digest()
        return {"order_digest": loader.order_digest(), **({"content_digest": content} if content else {})}

    def example(self) -> torch.Tensor:
        """(2, ...) prepared samples of the validation partition, the same twice where there is one, on the device."""
        dataset = self.data.partition["validation"]
        X = torch.stack([torch.as_tensor(dataset[i % size_of(dataset)][0]) for i in range(2)])
        return self.forward.inputs(single(X, self.device).to(self.device))

    # -----------------------------------------------------------------------------------------------------
    # one epoch
    # -----------------------------------------------------------------------------------------------------

    def _epoch(self, epoch: int, progress: Progress) -> tuple[dict[str, float], EpochTimes]:
        loader, clock, state, result = self.loaders["train"], self.clock, self.state, self.state.result
        clock.begin()
        self.account.begin()
        if state.phase == "training":
            state.begin_training(last=self._is_last(epoch))
            self._train(epoch, loader, progress)
            self.account.trained()
            state.phase = "validation"
        state.keep_random()  # of before the validation, which an interruption lets begin anew
        self._guard.read()
        metrics = {f"train/{name}": value for name, value in state.meter.metrics().items()}
        if (rate := state.optimizer.param_groups[0].get("lr")) is not None:
            metrics["train/learning_rate"] = float(rate)
        if has_streams(self.device):
            metrics["device/peak_memory_mb"] = torch.accelerator.max_memory_allocated(self.device) / 1e6
        clock.skip()  # reading the meter waited for the device; that was neither waiting for data nor evaluation

        self._stop.check()
        checked = self.evaluate("validation")
        metrics.update({f"validation/{name}": value for name, value in checked.metrics().items()})
        clock.lap("evaluation")

        state.keep_cut()
        state.schedule.epoch(metrics["validation/loss"])
        times = clock.epoch()
        self.account.end(times)
        if times.enough:
            metrics.update(metrics_of(times, self.account.setup(times)))
        if epoch == 0 and clock.first_batch_s is not None:
            metrics["loader/first_batch_s"] = clock.first_batch_s
        if not result.best or _lower(metrics["validation/loss"], result.best["validation/loss"]):
            result.best_epoch, result.best = epoch, metrics
            result.confusion, result.per_class = checked.confusion(), checked.per_class()
        result.stopped = self._reason_to_stop(epoch) or self._advise(epoch, metrics)
        result.history.append(metrics)
        result.metrics, state.phase, state.random = metrics, "done", None
        self._save()
        if result.best_epoch == epoch:
            checkpoint.copy(self._folder, "last", "best")
        clock.lap("checkpoint")
        return metrics, times

    def _train(self, epoch: int, loader: Any, progress: Progress) -> None:
        state, clock, window = self.state, self.clock, self._window
        if self._finished():  # resumed within an epoch, with a lower max_steps
            return
        state.model.train()
        batches = iter(ToDevice(loader, self.device, clock, self.forward.check(loader)))  # starts workers
        self._may_stop()
        for batch in batches:
            self._stop.safe = False
            state.random = None
            outputs = self.forward(batch.X)
            with self.forward.autocast():
                loss = self.task.loss(outputs, batch.y)
            self._guard.look(loss, state.step, batch.info)
            state.scaler.scale(window.scale(loss, len(batch.X))).backward()
            number = state.batches
            if window.full:
                self._optimize()
            state.meter.update(loss, outputs, batch.y)
            state.last, state.batches = batch.info, number + 1
            if (number + 1) % self.config.log_every == 0:
                self._guard.read()
            if progress.due:  # reading the loss waits for the device, twice a second, and only in a terminal
                progress.step(epoch, number, float(loss.detach()), clock.recent(RECENT))
            samples, info = len(batch.X), batch.info
            # torch lets go of the interpreter where it frees a tensor: after the next batch was taken, the thread that
            # is to make a further one would just be waiting for that, and would keep it; nor is it waiting for data
            del batch
            self.account.step()
            clock.step(samples, info.nbytes, info.timing)
            if info.slow:
                self.account.took_long(info.slow)
            if self._finished():
                break
            if window.empty:  # a checkpoint never lies within a window, so none holds gradients
                self._stop.check()
                self._save_if_due()
                self._may_stop()
        self._stop.safe = False
        clock.skip()
        if not state.meter.samples:
            raise UserError("the training loader gave no batch; lower loader.batch_size or set loader.drop_last=false")
        if not window.empty:  # the epoch's last batches do not fill a window
            self._optimize()

    def _tell_verdict(self) -> None:
        """Once, after the first epoch of this process that has enough steps for advice, where others follow."""
        times, last = self.account.times, self.state.epoch + 1 >= self.config.max_epochs
        if self._tell is None or self.state.result.stopped or last:
            return
        if times is None or times.steady.sum() < FEW_STEPS:
            return
        verdict = self.account.verdict()
        assert verdict is not None
        log.info("after epoch %d:\n%s", self.state.epoch + 1, verdict)
        self._tell(verdict)
        self._tell = None

    def _optimize(self) -> None:
        state = self.state
        self._window.rescale(state.model.parameters())
        self._window.clear()
        if self.config.clip_norm is not None:
            state.scaler.unscale_(state.optimizer)
            nn.utils.clip_grad_norm_(state.model.parameters(), self.config.clip_norm)
        self._guard.before_step(self._scaled)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.schedule.step()

    @torch.no_grad()
    def evaluate(self, partition: str) -> Meter:
        """One pass over a partition with the present weights; a loss that is not finite is told once.

        Raises:
            SampleError: it is not finite because a sample is not.
        """
        self.state.model.eval()
        meter, loader = self.task.meter(self.device), self.loaders[partition]
        # every validation sees the same samples with the same randomness
        loader.set_epoch(0, then=None if self._is_last(self.state.epoch) else 0)
        batches = iter(ToDevice(loader, self.device, None, self.forward.check(loader)))
        self._stop.allow()  # what is to be saved does not change in here
        losses: list[tuple[torch.Tensor, Any]] = []
        for batch in batches:
            outputs = self.forward(batch.X)
            with self.forward.autocast():
                loss = self.task.loss(outputs, batch.y)
            meter.update(loss, outputs, batch.y)
            losses.append((loss, batch.info))  # looked at afterwards, since a look waits for the device
        self._stop.safe = False
        if losses and not self._told:
            self._tell_not_finite(partition, losses)
        return meter

    def _tell_not_finite(self, partition: str, losses: list[tuple[torch.Tensor, Any]]) -> None:
        finite = torch.stack([loss for loss, _ in losses]).isfinite()
        if bool(finite.all()):
            return
        info = losses[finite.tolist().index(False)][1]
        if (culprit := not_finite(self.loaders[partition], info)) is not None:
            raise culprit
        self._told = True
        log.warning("note: %s/loss is not finite, first in the batch of %s; such an epoch is never the best one",
                    partition, names(self.loaders[partition], info))  # fmt: skip

    def _may_stop(self) -> None:
        """The state is that of a finished step, and stays so while the next batch is waited for."""
        if self._inline:  # a sample that is broken off may leave the generators as it has set them for itself
            self.state.keep_random()
        self._stop.allow()

    def _is_last(self, epoch: int) -> bool:
        """Whether an epoch is the run's last one, as far as that is known before it."""
        rest = -(-len(self.loaders["train"]) // self.config.accumulate)
        max_steps = self.config.max_steps
        return epoch + 1 >= self.config.max_epochs or (max_steps is not None and self.state.step + rest >= max_steps)

    def _finished(self) -> bool:
        return self.config.max_steps is not None and self.state.step >= self.config.max_steps

    def _reason_to_stop(self, epoch: int) -> str:
        patience, best = self.config.early_stopping, self.state.result.best
        # where no epoch's loss was finite, nothing is known of whether it fell
        if (
            patience is not None
            and math.isfinite(best["validation/loss"])
            and epoch - self.state.result.best_epoch >= patience
        ):
            return f"{STOPPED_EARLY} for {patience} epochs"
        return f"{STOPPED_AT}{self.config.max_steps}" if self._finished() else ""

    # -----------------------------------------------------------------------------------------------------
    # checkpoints
    # -----------------------------------------------------------------------------------------------------

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up the state of a checkpoint before `fit`, which sets the random generators; the loader takes its own.

        What ends training is judged anew, by the present configuration.
        """
        ours = self.state
        ours.load_state_dict(state, self.config.resume_optimizer)
        times = state.get("times_s", {})
        self.clock.go_on(times.get("phases", {}))
        self._earlier_s = float(times.get("all", 0.0))
        if state["phase"] == "done":
            epoch = int(state["epoch"])
            if not ours.result.stopped or ours.result.stopped.startswith((STOPPED_EARLY, STOPPED_AT)):
                ours.result.stopped = self._reason_to_stop(epoch)
            if ours.result.best_epoch == epoch:  # a kill may have come between the two checkpoints of that epoch's end
                checkpoint.save(self._folder, "best", state, ours.about())

    def _save(self) -> None:
        self._stop.safe = False
        self._guard.read()
        with self._stop.saving():
            about = self.state.about()
            times = {"phases": self.clock.totals_s(), "all": self.seconds}
            state = {**self.state.state_dict(), "times_s": times}
            checkpoint.save(self._folder, "last", state, about, self.config.keep_checkpoints)
        self._saved_at = time.perf_counter()

    def _save_if_due(self) -> None:
        every = self.config.checkpoint_every_s
        if every is not None and time.perf_counter() - self._saved_at >= every:
            self.clock.skip()
            self._save()
            self.clock.lap("checkpoint")


def _lower(loss: float, best: float) -> bool:
    """Whether a loss is the better one; one that is not finite never is."""
    return math.isfinite(loss) and not best <= loss
