"""From a batch as loaded to what the model gets: scaling and normalising on the device, and checks on the host."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from feedrate.dataset import Data
from feedrate.errors import SampleError


class Inputs:
    """Prepares the batches of one data set.

    uint8 becomes float32 in [0, 1]; all other types become float32; then (X - mean) / std, for each channel. What the
    model computes in is autocast's affair: float16 against its float32 weights would fail.
    """

    def __init__(self, data: Data, device: torch.device) -> None:
        self._shape, self._dtype = data.sample_shape, data.sample_dtype
        self._classes = data.targets.num_outputs if data.targets.task == "classification" else None
        self._mean, self._std = (self._along_channels(v, device) for v in (data.mean, data.std))

    def _along_channels(self, values: tuple[float, ...] | None, device: torch.device) -> Tensor | None:
        if values is None:
            return None
        tensor = torch.tensor(values, dtype=torch.float32, device=device)
        return tensor.view(-1, *[1] * (len(self._shape) - 1)) if len(values) > 1 else tensor

    def __call__(self, X: Tensor) -> Tensor:
        """(B, ...) as loaded to (B, ...) float32, on X's device."""
        if X.dtype == torch.uint8:
            X = X.float().div_(255)
        elif X.dtype != torch.float32:
            X = X.float()
        if self._mean is not None:
            X = X - self._mean
        return X / self._std if self._std is not None else X

    def check(self, X: Tensor, y: Tensor, name: Callable[[], str]) -> None:
        """Compares a batch on the host with the data set's first sample and its classes.

        Raises:
            SampleError: naming the batch's samples; a device would only report an assertion, steps later.
        """
        if tuple(X.shape[1:]) != self._shape or X.dtype != self._dtype:
            raise SampleError(
                f"batch of {name()}: samples are {tuple(X.shape[1:])} {X.dtype}, the first training sample is "
                f"{self._shape} {self._dtype}; make them alike, or take them out of the partition"
            )
        if self._classes is not None and len(y) and not 0 <= int(y.min()) <= int(y.max()) < self._classes:
            wrong = int(y.max()) if int(y.max()) >= self._classes else int(y.min())
            raise SampleError(
                f"batch of {name()}: holds class {wrong}, but there are {self._classes} classes "
                f"(0 to {self._classes - 1}); set dataset.num_outputs, or mend the labels"
            )
