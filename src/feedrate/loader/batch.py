"""Which batch is wanted next: the requests of an epoch, and beyond its end those of the epoch that most likely follows.

A request says what a batch holds; who makes it, and where, is an engine's affair.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from feedrate.errors import SampleError
from feedrate.loader.order import Order, Plan
from feedrate.timing.stages import Load


@dataclass(frozen=True)
class BatchRequest:
    """An order for one batch.

    Attributes:
        epoch: travels with the batch, since persistent workers hold a stale copy of everything else.
        start, stop: positions of the global batch in the epoch's order.
        indices: (n,) int64, the samples of this rank's part.
    """

    epoch: int
    start: int
    stop: int
    indices: np.ndarray


@dataclass(frozen=True)
class BatchInfo:
    """What came of a request; travels back with the batch as plain values, since each tensor costs a descriptor.

    Attributes:
        request: the order, as the worker read it.
        made: who made the batch, when, and what it was spent on: the values of `load`.
        nbytes: of the batch's dense tensors and arrays.
        error: what went wrong; the batch is None then.
        slow: (index in the dataset, ns) of samples among the longest that this worker has seen; none where samples
            are not timed one by one.
        content: the loader's content digest after this batch, b"" unless asked for; added on arrival.
    """

    request: BatchRequest
    made: tuple[int, ...]
    nbytes: int = 0
    error: SampleError | None = None
    slow: Sequence[tuple[int, int]] = ()
    content: bytes = b""

    @property
    def load(self) -> Load:
        return Load(*self.made)


def requests_of(plan: Plan) -> Iterator[BatchRequest]:
    for start, stop, indices in plan:
        yield BatchRequest(plan.order.epoch, start, stop, indices)


class BatchRequests(Sampler[Any]):
    """Iterating gives the requests of `plan`, and then of the epochs after it, as far as they are known.

    Requests are given out some batches before they are due, so the first ones of the next epoch while the last batches
    of this one are still on their way: a small data set would otherwise stand still at the start of each epoch.

    Args:
        dataset: of which only the length is asked, anew for each epoch.

    Attributes:
        plan: of the pass that begins.
        step: from an epoch to the one that follows it, in numbers: 1, or 0 where the same one is repeated; None: what
            follows is not known, or nothing does, and the requests end with the epoch.
    """

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self.plan: Plan | None = None
        self.step: int | None = None
        self._ahead: deque[Plan] = deque()  # whose requests are being given out, and whose pass has not begun
        self._due = False  # whether batches of a pass that has begun are still to come

    def __iter__(self) -> Iterator[BatchRequest]:
        assert self.plan is not None
        self._ahead = deque()
        return self._given(self.plan, self._ahead)

    def _given(self, plan: Plan, ahead: deque[Plan]) -> Iterator[BatchRequest]:
        while True:
            yield from requests_of(plan)
            if self.step is None:
                return
            old = plan.order
            order = Order(len(self._dataset), old.seed, old.epoch + self.step, old.shuffle)
            plan = replace(plan, order=order, start=0)
            if not len(plan):
                return
            ahead.append(plan)

    def known(self, order: Order) -> Order:
        """The same order; the one of the requests that are being given out, whose positions are computed already."""
        ahead = self._ahead[0].order if self._ahead else None
        return ahead if ahead is not None and ahead == order else order

    def begin(self, plan: Plan) -> bool:
        """A pass through `plan` begins: whether the batch that is due next is its first, so that all goes on."""
        goes_on = not self._due and bool(self._ahead) and self._ahead[0] == plan
        if goes_on:
            self._ahead.popleft()
        self.plan, self._due = plan, True
        return goes_on

    def end(self) -> None:
        """The last batch of the pass was handed out."""
        self._due = False
