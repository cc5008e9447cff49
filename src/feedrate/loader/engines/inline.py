"""Loading in the training process itself, between two steps: each batch when it is asked for.

What is done with a ticket is fetch.py; ahead of the training load threads.py and workers.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch.utils.data import DataLoader

from feedrate.loader.batch import Tickets
from feedrate.loader.device import pinned, pins
from feedrate.loader.engines.threads import one_at_a_time
from feedrate.loader.fetcher import Samples
from feedrate.loader.order import Plan

T = TypeVar("T")


class Inline:
    """Turns the tickets of a plan into the batches that `samples` makes of them; stands in for Workers."""

    def __init__(self, samples: Samples, tickets: Tickets) -> None:
        self._samples, self._tickets = samples, tickets

    def begin(self, plan: Plan, settings: DataLoader[Any]) -> Iterator[Any]:
        """Batches with their receipts; where one may take only so many seconds, a thread makes it."""
        self._tickets.begin(plan)
        device = pins(settings)
        if settings.timeout:
            return one_at_a_time(self._samples, iter(self._tickets), device, settings.timeout)
        made = map(self._samples.make, iter(self._tickets))
        return made if device is None else (_pinned(one, device) for one in made)

    def watched(self, step: Callable[[], T]) -> T:
        """What `step` returns; there is no process that could be lost."""
        return step()

    def tasks(self) -> list[tuple[int, int]]:
        """None beside the training's own thread."""
        return []

    def rest(self) -> None:
        """Nothing runs ahead."""

    def end(self) -> None:
        """Nothing runs ahead."""

    def kill(self) -> None:
        """Nothing runs ahead."""


def _pinned(made: tuple[Any, Any], device: str) -> tuple[Any, Any]:
    batch, receipt = made
    return (batch if receipt.error is not None else pinned(batch, device)), receipt
