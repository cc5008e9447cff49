"""A model with all that stands between a loaded batch and its answer: inputs, precision, and errors that say whose
fault it is. Training and evaluation share it; what is done with the answer is theirs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from feedrate.dataset import Data
from feedrate.dataset.probe import probe_again, sample_error
from feedrate.errors import SampleError, UserError, raised_at
from feedrate.loader import Batch, BatchInfo, lost_worker
from feedrate.system.device_errors import explained, out_of_memory
from feedrate.trainer.device import Precision
from feedrate.trainer.inputs import Inputs

_ONE_SAMPLE = "Expected more than 1 value per channel when training"  # torch's text, for batch normalization


class Forward:
    """Calls `model` in the mode, training or evaluation, that it is in.

    Args:
        loaders: all that have workers now; torch reports a worker's death wherever the main process is, so also here.
        compile: torch.compile wraps the model; its weights keep the names of the plain one.
        remedy: what to do when the device's memory runs out.
        channels_last: images of (B, C, H, W) are given to the model with their channels last in memory.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        device: torch.device,
        precision: Precision,
        compile: bool = False,
        remedy: str = "lower loader.batch_size",
        channels_last: bool = False,
    ) -> None:
        self.model, self.inputs, self.device = model, Inputs(data, device), device
        self._precision, self._remedy = precision, remedy
        self._channels_last = channels_last
        self._samples = 0  # of the last batch
        self._call: Callable[..., Tensor] = torch.compile(model) if compile else model

    def __call__(self, loaded: Tensor) -> Tensor:
        """From (B, ...) as loaded, on the device, to the model's outputs.

        Raises:
            UserError: the model fails on it, or the device's memory is too small.
        """
        self._samples = len(loaded)
        try:
            X = self.inputs(loaded)
            if self._channels_last and X.dim() == 4:
                X = X.contiguous(memory_format=torch.channels_last)
            with self.autocast():
                return self._call(X)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            if isinstance(error, UserError):
                raise
            if (told := self.explained(error)) is not None:
                raise told from error
            name, text = type(self.model).__name__, (str(error).strip() or type(error).__name__).splitlines()[0]
            remedy = ""
            if _ONE_SAMPLE in text and len(loaded) == 1:
                remedy = (
                    "\nThe batch holds one sample, as an epoch's last batch may; set loader.drop_last=true, or another "
                    "loader.batch_size"
                )
            raise UserError(
                f"model: {name} failed on X of shape {tuple(loaded.shape)}: {text}{raised_at(error)}{remedy}"
            ) from error

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision's, for the loss."""
        if self._precision.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self._precision.dtype)

    def check(self, loader: Any) -> Callable[[Batch], None]:
        """Looks at a batch of that loader on the host; raises SampleError naming its samples."""
        return lambda batch: self.inputs.check(batch.X, batch.y, lambda: names(loader, batch.info))

    def explained(self, error: Exception) -> UserError | None:
        """What an error means that came up anywhere in a step: the device has failed or its memory ran out, or a worker
        died; torch raises the latter wherever the main process is then. None for any other error.
        """
        return self._no_memory() if out_of_memory(error) else explained(error) or lost_worker(error)

    def _no_memory(self) -> UserError:
        on = f"a batch of {self._samples} samples" if self._samples else "its first batch"
        return UserError(f"the device ran out of memory on {on}; {self._remedy}")


def not_finite(loader: Any, info: BatchInfo) -> SampleError | None:
    """Of a batch whose loss is not finite: the error of its first sample that is not finite itself, read once more.

    None where there is none, or where the loader does not tell what was in the batch.
    """
    request = info.request
    for index, ID in zip(request.indices.tolist(), loader.IDs(info), strict=True):
        try:
            sample = probe_again(loader.dataset, index, loader.seed, request.epoch, ID)
            found = [
                name for name, value in zip("Xy", sample, strict=True) if not torch.as_tensor(value).isfinite().all()
            ]
        except Exception:  # the loss is what is to be told
            continue
        if found:
            said = UserError(f"{found[0]} holds a value that is not finite (NaN or inf); mend it, or take the ID out")
            return sample_error(loader.dataset, ID, said)
    return None


def names(loader: Any, info: BatchInfo) -> str:
    """The samples of a batch, for an error."""
    IDs = loader.IDs(info)
    if not IDs:
        return "unknown samples (loader=feedrate names them)"
    return ", ".join(map(repr, IDs[:8])) + (f", ... ({len(IDs)} in all)" if len(IDs) > 8 else "")
