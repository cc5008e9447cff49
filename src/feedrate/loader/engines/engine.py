"""What an engine is: it turns batch requests into batches, in order. Add one here and in engines/__init__.py."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeVar

from torch.utils.data import DataLoader

from feedrate.loader.batch import Batch
from feedrate.loader.engines.scheduler import Scheduler
from feedrate.loader.fetcher import BatchFetcher
from feedrate.loader.order import Plan
from feedrate.timing.engine_traits import EngineTraits

T = TypeVar("T")


class Engine:
    """Loads the batches that a scheduler requests.

    With `persistent_workers` the workers continue into the next epoch. The running iterator is referenced weakly
    otherwise, so that its workers end with the user's last reference to it.

    Args:
        fetcher: loads one batch.
        scheduler: of the loader.
    """

    traits: ClassVar[EngineTraits]

    def __init__(self, fetcher: BatchFetcher, scheduler: Scheduler) -> None:
        self._fetcher, self._scheduler = fetcher, scheduler
        self._persistent: Any = None  # iterator that continues into the next epoch
        self._running: weakref.ref[Any] | None = None

    @property
    def running(self) -> Any:
        """The iterator whose workers may be alive, or None."""
        return self._running() if self._running is not None else None

    def run(self, plan: Plan, settings: DataLoader[Any]) -> Iterator[Batch]:
        """Batches from the plan's first one on; prefetching begins at once.

        Args:
            settings: the user's DataLoader, for num_workers, timeout and so on. It is not kept: in a reference cycle
                the workers would end only with Python's cyclic collector.
        """
        continues = self._scheduler.begin(plan)
        if self._persistent is not None and continues:
            self.resumed()
            return self._persistent  # type: ignore[no-any-return]
        batches = self.start(settings)
        self._persistent = batches if settings.persistent_workers else None
        self._running = weakref.ref(batches)
        return batches

    def start(self, settings: DataLoader[Any]) -> Iterator[Batch]:
        """Ends earlier workers, starts new ones, and returns their batches."""
        raise NotImplementedError

    def resumed(self) -> None:
        """Persistent workers continue with the next epoch."""

    def guard(self, step: Callable[[], T]) -> T:
        """Calls `step`, which waits for workers; a lost worker becomes a LostWorker error."""
        return step()

    def tasks(self) -> list[tuple[int, int]]:
        """Process and thread ID of each living worker."""
        return []

    def idle(self) -> None:
        """The epoch's last batch was delivered; no batch is requested for a while."""

    def close(self, now: bool = False) -> None:
        """Ends the workers; `now`: without waiting for the samples that they load."""
