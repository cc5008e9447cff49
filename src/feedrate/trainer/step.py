"""The training step: forward, loss, backward, and an optimizer step every `trainer.accumulate` batches."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from feedrate.config import TrainerConfig
from feedrate.loader import Batch
from feedrate.task.task import Task
from feedrate.timing import Clock
from feedrate.trainer.forward import Forward
from feedrate.trainer.guard import LossGuard
from feedrate.trainer.state import RunState


class TrainingStep:
    """Trains on one batch after the other.

    Args:
        state: model, optimizer, schedule and gradient scaler; its counts and meter are updated.
    """

    def __init__(
        self, config: TrainerConfig, forward: Forward, task: Task, state: RunState, guard: LossGuard, clock: Clock
    ) -> None:
        self.forward, self.task, self.state, self.guard, self.clock = forward, task, state, guard, clock
        self.window = AccumulationWindow(config.accumulate)
        self._clip_norm = config.clip_norm

    def __call__(self, batch: Batch) -> Tensor:
        """Trains on one batch; returns its mean loss, a scalar on the device.

        Raises:
            UserError: the model fails on the batch, or the loss is not finite.
        """
        state, timed = self.state, self.clock.timed
        loss, outputs = timed("forward", self._forward, batch)
        timed("backward", state.scaler.scale(self.window.scale(loss, len(batch.X))).backward)
        if self.window.full:
            timed("optimizer", self.optimize)
        state.meter.update(loss, outputs, batch.y)
        state.last, state.batches = batch.info, state.batches + 1
        return loss

    def _forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss and outputs."""
        outputs = self.forward(batch.X)
        with self.forward.autocast():
            loss = self.task.loss(outputs, batch.y)
        self.guard.check(loss, self.state.step, batch.info)
        return loss, outputs

    def optimize(self) -> None:
        """The optimizer step on the gradients so far."""
        state = self.state
        self.window.rescale(state.model.parameters())
        self.window.clear()
        if self._clip_norm is not None:
            state.scaler.unscale_(state.optimizer)
            nn.utils.clip_grad_norm_(state.model.parameters(), self._clip_norm)
        self.guard.before_step(state.scaler.is_enabled())
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.schedule.step()


class AccumulationWindow:
    """Weights each batch of an optimizer step by its number of samples.

    Each loss, a batch mean, is divided as if all batches had the size of the first one, which is exact where they have;
    if not, the gradients are rescaled once before the step.
    """

    def __init__(self, batches: int) -> None:
        self._batches = batches
        self.clear()

    def clear(self) -> None:
        """Starts the next optimizer step."""
        self._count = self._samples = self._expected = 0

    @property
    def empty(self) -> bool:
        """Whether no batch was added since the last optimizer step."""
        return self._count == 0

    @property
    def full(self) -> bool:
        """Whether the optimizer step is due."""
        return self._count == self._batches

    def scale(self, loss: Tensor, samples: int) -> Tensor:
        """Counts the batch, and returns its loss scaled for `backward`."""
        if not self._count:
            self._expected = self._batches * samples
        self._count += 1
        self._samples += samples
        return loss / (self._expected / samples)

    def rescale(self, parameters: Iterable[Tensor]) -> None:
        """Makes the gradients the mean over all samples; call before they are clipped or used."""
        if self._samples == self._expected:
            return
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(self._expected / self._samples)
