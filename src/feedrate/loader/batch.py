"""A batch, what is known about it, and the request it answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from feedrate.errors import SampleError
from feedrate.loader.order import Plan
from feedrate.timing.stages import Load


@dataclass(frozen=True)
class BatchRequest:
    """One batch to load.

    Attributes:
        epoch: sent along, since persistent workers hold an outdated copy of the loader.
        start, stop: positions of the global batch in the epoch's order.
        indices: (n,) int64, this rank's samples; empty where they are not known (TorchLoader with shuffle).
    """

    epoch: int
    start: int
    stop: int
    indices: np.ndarray


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
        X: Tensor = self.data[0]
        return X

    @property
    def y(self) -> Tensor:
        """(B,) or (B, K), the second of a pair."""
        y: Tensor = self.data[1]
        return y


def requests_of(plan: Plan) -> Iterator[BatchRequest]:
    for start, stop, indices in plan:
        yield BatchRequest(plan.order.epoch, start, stop, indices)
