"""Gradient accumulation: the batches of one optimizer step, whose gradient is the mean over all their samples."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


class AccumulationWindow:
    """Weights each batch of an optimizer step by its number of samples.

    Each loss, a batch mean, is divided as if all batches had the size of the first one, which is exact where they have;
    if not, the gradients are rescaled once before the step.

    Args:
        batches: in a full window.
    """

    def __init__(self, batches: int) -> None:
        self._batches = batches
        self.clear()

    def clear(self) -> None:
        """Starts the next optimizer step."""
        self._count = self._samples = self._expected = 0

    @property
    def empty(self) -> bool:
        return self._count == 0

    @property
    def full(self) -> bool:
        return self._count == self._batches

    def scale(self, loss: Tensor, samples: int) -> Tensor:
        """Adds a batch; from its mean loss, a scalar, to the loss for `backward`."""
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
