"""From a loaded batch to the model's outputs: checks, scaling, precision, and errors that name the cause."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from feedrate.dataset import Data
from feedrate.errors import SampleError, UserError, raised_at
from feedrate.loader import Batch, lost_worker
from feedrate.system.device import explained
from feedrate.trainer.device import Precision
from feedrate.trainer.guard import names


class Forward:
    """Calls `model` in the mode, training or evaluation, that it is in.

    With `channels_last` images of (B, C, H, W) are given to the model with their channels last in memory.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        device: torch.device,
        precision: Precision,
        compile: bool = False,
        channels_last: bool = False,
    ) -> None:
        self.model, self.device = model, device
        self._precision, self._channels_last = precision, channels_last
        self._shape, self._dtype = data.sample_shape, data.sample_dtype
        self._classes = data.targets.num_outputs if data.targets.task == "classification" else None
        self._mean, self._std = (self._along_channels(values) for values in (data.mean, data.std))
        self._call: Callable[..., Tensor] = torch.compile(model) if compile else model

    def __call__(self, loaded: Tensor) -> Tensor:
        """From (B, ...) as loaded, on the device, to the model's outputs."""
        try:
            X = self.inputs(loaded)
            if self._channels_last and X.dim() == 4:
                X = X.contiguous(memory_format=torch.channels_last)
            with self.autocast():
                return self._call(X)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            if isinstance(error, UserError):
                raise
            if (cause := cause_of(error)) is not None:
                raise cause from error
            name, text = type(self.model).__name__, (str(error).strip() or type(error).__name__).splitlines()[0]
            where = raised_at(error)
            raise UserError(f"model: {name} failed on X of shape {tuple(loaded.shape)}: {text}{where}") from error

    def inputs(self, X: Tensor) -> Tensor:
        """(B, ...) as loaded to (B, ...) float32: uint8 scaled to [0, 1], then (X - mean) / std for each channel.

        float32 whatever the precision: autocast converts where needed, and float16 would not fit float32 weights.
        """
        if X.dtype == torch.uint8:
            X = X.float().div_(255)
        elif X.dtype != torch.float32:
            X = X.float()
        if self._mean is not None:
            X = X - self._mean
        return X / self._std if self._std is not None else X

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision's autocast, also for the loss."""
        if self._precision.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self._precision.dtype)

    def check(self, loader: Any) -> Callable[[Batch], None]:
        """A check of the loader's batches on the host: shape and dtype as the first training sample's, known classes.

        It raises SampleError naming the batch's samples; a device would only report an assertion, steps later.
        """

        def check(batch: Batch) -> None:
            X, y = batch.X, batch.y
            if tuple(X.shape[1:]) != self._shape or X.dtype != self._dtype:
                raise SampleError(
                    f"batch of {names(loader, batch.info)}: samples are {tuple(X.shape[1:])} {X.dtype}, the first "
                    f"training sample is {self._shape} {self._dtype}; give all the same, or take these out"
                )
            if self._classes is not None and len(y) and not 0 <= int(y.min()) <= int(y.max()) < self._classes:
                raise SampleError(
                    f"batch of {names(loader, batch.info)}: classes are {int(y.min())} to {int(y.max())}, but must be "
                    f"0 to {self._classes - 1}; set dataset.num_outputs, or correct the labels"
                )

        return check

    def _along_channels(self, values: tuple[float, ...] | None) -> Tensor | None:
        if values is None:
            return None
        tensor = torch.tensor(values, dtype=torch.float32, device=self.device)
        return tensor.view(-1, *[1] * (len(self._shape) - 1)) if len(values) > 1 else tensor


def cause_of(error: Exception) -> UserError | None:
    """The cause of an error raised anywhere in a step: the device, or a worker's death; None for any other."""
    return explained(error) or lost_worker(error)
