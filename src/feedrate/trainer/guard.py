"""A loss that is not a number stops the run, and never reaches the weights.

On the CPU it is looked at before each optimizer step. On a device that would wait for the device at every
step: there the step is made harmless on the device itself, and the flag is read at the log interval.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

from feedrate.errors import SampleError, UserError
from feedrate.loader import BatchInfo
from feedrate.loader.device import has_streams


class LossGuard:
    """Watches the losses of one run.

    Args:
        optimizer: a fused one skips a step itself when told so by `found_inf`; for others on a device the flag is read
            at every step.
        name: names the samples of a batch info.
        culprit: the error of a sample of the batch whose X is not finite, None where there is none.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        device: torch.device,
        name: Callable[[BatchInfo], str],
        culprit: Callable[[BatchInfo], SampleError | None] = lambda info: None,
    ) -> None:
        self._optimizer, self._name, self._culprit = optimizer, name, culprit
        # fused optimizers on MPS have ignored `found_inf`
        fused = has_streams(device) and all(group.get("fused") for group in optimizer.param_groups)
        self._deferred = fused and getattr(optimizer, "_step_supports_amp_scaling", False)
        self._pending: deque[tuple[int, BatchInfo, Tensor]] = deque()
        self._window: Tensor | None = None

    def look(self, loss: Tensor, step: int, info: BatchInfo) -> None:
        """Call after the forward pass of each batch, before its gradients can reach the weights.

        Raises:
            UserError: the loss is not finite, naming step and samples.
        """
        bad = ~torch.isfinite(loss.detach())
        if not self._deferred:
            if bool(bad):  # a synchronisation where an accelerator trains with an optimizer that is not fused
                self._stop(step, info, float(loss.detach()))
            return
        self._window = bad if self._window is None else self._window | bad
        self._pending.append((step, info, bad))

    def before_step(self, scaled: bool) -> None:
        """Tells the fused optimizer to leave the weights alone if a loss since the last step was not finite.

        With a gradient scaler nothing is to be told: it finds the gradients not finite, and skips the step.
        """
        if self._deferred and not scaled:
            assert self._window is not None
            self._optimizer.found_inf = self._window.float()  # type: ignore[attr-defined]
        self._window = None

    def read(self) -> None:
        """Reads the flags of the steps so far; the one synchronisation of the log interval.

        Raises:
            UserError: as `look`.
        """
        if not self._pending:
            return
        flags = torch.stack([bad for _, _, bad in self._pending]).tolist()
        for (step, info, _), bad in zip(self._pending, flags, strict=True):
            if bad:
                self._stop(step, info, float("nan"))
        self._pending.clear()

    def _stop(self, step: int, info: BatchInfo, value: float) -> None:
        if (culprit := self._culprit(info)) is not None:
            raise culprit
        raise UserError(
            f"the loss is {value} at step {step}, batch of {self._name(info)}; the weights are those before it\n"
            "Look at these samples for values that are not finite, lower optimizer.lr, or set trainer.clip_norm=1"
        )
