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
    """What is known about a loaded batch; crosses processes as plain values, since each tensor costs a descriptor.

    Attributes:
        request: as the worker read it.
        timing: the values of `load`; None from TorchLoader.
        nbytes: size of the dense tensors and arrays.
        error: why there is no batch; its data is None then.
        slow: (index in the dataset, ns) of samples among the slowest of this worker, where samples are timed.
        content: the content digest after this batch, b"" unless `content_digest` is on.
    """

    request: BatchRequest
    timing: tuple[int, ...] | None = None
    nbytes: int = 0
    error: SampleError | None = None
    slow: Sequence[tuple[int, int]] = ()
    content: bytes = b""

    @property
    def load(self) -> Load:
        """Who loaded the batch, when, and the time spent in each stage."""
        assert self.timing is not None
        return Load(*self.timing)


@dataclass(slots=True)
class Batch:
    """A collated batch with its info."""

    data: Any
    info: BatchInfo

    @property
    def X(self) -> Tensor:
        """(B, ...), the first of a pair."""
        return self.data[0]  # type: ignore[no-any-return]

    @property
    def y(self) -> Tensor:
        """(B,) or (B, K), the second of a pair."""
        return self.data[1]  # type: ignore[no-any-return]
