"""Loading in the training process itself, between two steps: each batch when it is asked for.

What is done with a request is fetch.py; ahead of the training load threads.py and workers.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch.utils.data import DataLoader

from feedrate.loader.batch import BatchRequests
from feedrate.loader.device import pinned, pins
from feedrate.loader.engines.threads import one_at_a_time
from feedrate.loader.fetcher import BatchFetcher
from feedrate.loader.order import Plan

T = TypeVar("T")


class Inline:
    """Turns the requests of a plan into the batches that `samples` makes of them; stands in for Workers."""

    def __init__(self, samples: BatchFetcher, requests: BatchRequests) -> None:
        self._samples, self._requests = samples, requests

    def begin(self, plan: Plan, settings: DataLoader[Any]) -> Iterator[Any]:
        """Batches with their batch infos; where one may take only so many seconds, a thread makes it."""
        self._requests.begin(plan)
        device = pins(settings)
        if settings.timeout:
            return one_at_a_time(self._samples, iter(self._requests), device, settings.timeout)
        made = map(self._samples.make, iter(self._requests))
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
    batch, info = made
    return (batch if info.error is not None else pinned(batch, device)), info
