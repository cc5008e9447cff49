"""What the workers of a loader depend on: once one of these attributes has changed, they must be started again."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.context import BaseContext
from typing import Any, NamedTuple


class Options(NamedTuple):
    """Attributes of a seeded loader that may change after construction, and the length of its dataset."""

    samples: int
    collate_fn: Callable[[Any], Any]
    engine: str
    num_workers: int
    prefetch_factor: int | None
    pin_memory: bool
    timeout: float  # seconds
    worker_init_fn: Callable[[int], None] | None
    multiprocessing_context: BaseContext | None

    @classmethod
    def of(cls, loader: Any) -> Options:
        """Their present values."""
        attributes = {name: getattr(loader, name) for name in cls._fields if name != "samples"}
        return cls(samples=len(loader.dataset), **attributes)
