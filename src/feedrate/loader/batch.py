"""A batch, and what is known about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from feedrate.errors import SampleError
from feedrate.loader.order import BatchRequest
from feedrate.timing.stages import Load


@dataclass(frozen=True)
class BatchInfo:
    """What is known about a loaded batch; crosses processes as plain values, since each tensor costs a descriptor."""

    request: BatchRequest
    timing: tuple[int, ...] | None = None  # the values of `load`; None from TorchLoader
    nbytes: int = 0  # of the dense tensors and arrays
    error: SampleError | None = None  # why there is no batch; its data is None then
    slow: Sequence[tuple[int, int]] = ()  # (index, ns) of samples among the slowest of this worker
    content: bytes = b""  # the content digest after this batch, where it is on

    @property
    def load(self) -> Load:
        """Which worker loaded the batch, when, and the time spent in each stage."""
        assert self.timing is not None
        return Load(*self.timing)


@dataclass(slots=True)
class Batch:
    """A collated batch with its info."""

    data: Any
    info: BatchInfo

    @property
    def X(self) -> Tensor:
        """The inputs, (B, ...): the first of the pair (X, y)."""
        return self.data[0]  # type: ignore[no-any-return]

    @property
    def y(self) -> Tensor:
        """The targets, (B,) or (B, K): the second of the pair (X, y)."""
        return self.data[1]  # type: ignore[no-any-return]
