"""Hands out the batch requests of one epoch after another, and knows which batch is due next."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch.utils.data import Sampler

from feedrate.loader.order import BatchRequest, Order, Plan


class Scheduler(Sampler[Any]):
    """Iterating gives the requests of `plan`, then of the epochs that follow, as far as they are known.

    Engines prefetch, so the first requests of the next epoch are issued while the last batches of this one are in
    flight; otherwise a small data set would stall at each epoch's start.
    """

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset  # only its length is used, read again for each epoch
        self.plan: Plan | None = None  # of the current epoch
        self.step: int | None = None  # added to the epoch for the next one (0 repeats it); None: no epoch follows
        self._ahead: deque[Plan] = deque()  # epochs whose requests were issued before the epoch has begun
        self._due = False  # whether batches of the current epoch are outstanding

    def __iter__(self) -> Iterator[BatchRequest]:
        assert self.plan is not None
        self._ahead = deque()
        return self._requests(self.plan, self._ahead)

    def _requests(self, plan: Plan, ahead: deque[Plan]) -> Iterator[BatchRequest]:
        while True:
            yield from plan
            if self.step is None:
                return
            old = plan.order
            order = Order(len(self._dataset), old.seed, old.epoch + self.step, old.shuffle)
            plan = replace(plan, order=order, start=0)
            if not len(plan):
                return
            ahead.append(plan)

    def begin(self, plan: Plan) -> bool:
        """Begins an epoch; returns whether its first batch is the next one that the running engine delivers."""
        continues = not self._due and bool(self._ahead) and self._ahead[0] == plan
        if continues:
            self._ahead.popleft()
        self.plan, self._due = plan, True
        return continues

    def end(self) -> None:
        """The epoch's last batch was delivered."""
        self._due = False
