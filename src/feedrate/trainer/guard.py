"""A loss that is not finite stops the run before it reaches the weights, and is traced to its sample where possible.

On the CPU the loss is read before each optimizer step. On an accelerator that would wait for the device at every step:
there the device skips the step itself, and the flags are read at the log interval.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from feedrate.dataset.probe import probe_again, sample_error
from feedrate.errors import UserError
from feedrate.loader import BatchInfo
from feedrate.system.device import has_streams


class LossGuard:
    """Watches the training losses of one run; where the optimizer is not fused each loss is read."""

    def __init__(self, optimizer: Optimizer, device: torch.device, loader: Any) -> None:
        self._optimizer, self._loader = optimizer, loader
        # fused optimizers on MPS have ignored `found_inf`
        fused = has_streams(device) and all(group.get("fused") for group in optimizer.param_groups)
        self._deferred = fused and getattr(optimizer, "_step_supports_amp_scaling", False)
        self._pending: deque[tuple[int, BatchInfo, Tensor]] = deque()
        self._window: Tensor | None = None

    def check(self, loss: Tensor, step: int, info: BatchInfo) -> None:
        """Call after each forward pass; raises UserError (on an accelerator `read` does) if the loss is not finite."""
        bad = ~torch.isfinite(loss.detach())
        if not self._deferred:
            if bool(bad):  # waits for the device where an accelerator trains with an optimizer that is not fused
                self._stop(step, info, float(loss.detach()))
            return
        self._window = bad if self._window is None else self._window | bad
        self._pending.append((step, info, bad))

    def before_step(self, scaled: bool) -> None:
        """Makes a fused optimizer skip its step after a loss that was not finite; a gradient scaler does so itself."""
        if self._deferred and not scaled:
            assert self._window is not None
            self._optimizer.found_inf = self._window.float()  # type: ignore[attr-defined]
        self._window = None

    def read(self) -> None:
        """Checks the losses of the steps so far, which waits for the device; raises UserError as `check` does."""
        if not self._pending:
            return
        flags = torch.stack([bad for _, _, bad in self._pending]).tolist()
        for (step, info, _), bad in zip(self._pending, flags, strict=True):
            if bad:
                self._stop(step, info, float("nan"))
        self._pending.clear()

    def _stop(self, step: int, info: BatchInfo, value: float) -> None:
        check_samples(self._loader, info)
        raise UserError(
            f"the loss is {value} at step {step}, batch of {names(self._loader, info)}; the weights are those before it"
            "\nLook at these samples for values that are not finite, lower optimizer.lr, or set trainer.clip_norm=1"
        )


def names(loader: Any, info: BatchInfo) -> str:
    """The samples of a batch, for an error."""
    if not (IDs := loader.IDs(info)):
        return "unknown samples (loader=feedrate names them)"
    return ", ".join(map(repr, IDs[:8])) + (f", ... ({len(IDs)} in all)" if len(IDs) > 8 else "")


def check_samples(loader: Any, info: BatchInfo) -> None:
    """Loads the samples of a batch again; raises SampleError for the first one that is not finite."""
    for index, ID in zip(info.request.indices.tolist(), loader.IDs(info), strict=True):
        try:
            sample = probe_again(loader.dataset, index, loader.seed, info.request.epoch, ID)
            finite = all(bool(torch.as_tensor(value).isfinite().all()) for value in sample)
        except Exception:  # the error that is reported is that of the loss
            continue
        if not finite:
            text = "X or y holds a value that is not finite (NaN or inf); correct it, or take the ID out"
            raise sample_error(loader.dataset, ID, UserError(text))
