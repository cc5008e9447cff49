"""The batches of one optimizer step, whose gradient is the mean over all their samples."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


class AccumulationWindow:
    """Weights each batch of an optimizer step by its samples.

    Losses are batch means. Each is divided as if all batches had the size of the first one, which is exact where they
    have; if not, the gradients are rescaled once before the step.

    Args:
        batches: of a full window.

    Attributes:
        empty: no batch has come since the last optimizer step.
    """

    def __init__(self, batches: int) -> None:
        self._batches = batches
        self.clear()

    def clear(self) -> None:
        """Begins the next optimizer step."""
        self._count = self._samples = self._expected = 0

    @property
    def empty(self) -> bool:
        return self._count == 0

    @property
    def full(self) -> bool:
        return self._count == self._batches

    def scale(self, loss: Tensor, samples: int) -> Tensor:
        """Adds a batch; returns the loss whose backward pass adds the batch's part of the gradient.

        Args:
            loss: mean over the batch, a scalar.
            samples: in the batch.
        """
        if not self._count:
            self._expected = self._batches * samples
        self._count += 1
        self._samples += samples
        return loss / (self._expected / samples)

    def rescale(self, parameters: Iterable[Tensor]) -> None:
        """Makes the gradients the mean over the samples that came; to be called before they are clipped or used."""
        if self._samples == self._expected:
            return
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(self._expected / self._samples)
