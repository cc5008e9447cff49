"""Loads each batch in the training process when it is requested."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from feedrate.loader.batch import Batch
from feedrate.loader.engines.engine import Engine
from feedrate.loader.engines.pinning import pinned, pins
from feedrate.loader.engines.threads import one_at_a_time
from feedrate.loader.order import Plan
from feedrate.timing.engine_traits import EngineTraits


class Inline(Engine):
    """No workers. With a timeout a thread loads each batch, since the main thread cannot be interrupted."""

    traits = EngineTraits(shares_interpreter=True, has_processes=False, prefetches=False)

    def run(self, plan: Plan, settings: DataLoader[Any]) -> Iterator[Batch]:
        self._scheduler.begin(plan)
        return self.start(settings)

    def start(self, settings: DataLoader[Any]) -> Iterator[Batch]:
        device = pins(settings)
        if settings.timeout:
            return one_at_a_time(self._fetcher, iter(self._scheduler), device, settings.timeout)
        batches = map(self._fetcher.load, iter(self._scheduler))
        return batches if device is None else (pinned(batch, device) for batch in batches)
