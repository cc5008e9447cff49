"""torch's DataLoader, or any other iterable of batches, behind the interface of SeededLoader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from feedrate.dataset.open_files import warn_of_open_files
from feedrate.loader.batch import Batch, BatchInfo
from feedrate.loader.digest import nbytes
from feedrate.loader.engines import TRAITS
from feedrate.loader.engines.lost_worker import lost_worker
from feedrate.loader.engines.processes import is_forked
from feedrate.loader.loader import SeededLoader
from feedrate.loader.order import BatchRequest
from feedrate.timing.engine_traits import EngineTraits

_UNKNOWN = np.empty(0, dtype=np.int64)


class TorchLoader:
    """A loader with the methods of SeededLoader; its batches carry data and size, but no timing and no indices."""

    engine, seed, list_IDs, threadable = "torch", None, None, False
    rank, world_size = 0, 1

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        for name, absent in (("num_workers", 0), ("prefetch_factor", None), ("batch_size", None)):
            setattr(self, name, getattr(loader, name, absent))
        self._epoch = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    @property
    def traits(self) -> EngineTraits:
        """Those of the engine that loads in the same way."""
        return TRAITS["process" if self.num_workers else "inline"]

    @property
    def end(self) -> int:
        """The number of samples: the position after an epoch's last batch."""
        return len(self.loader.dataset)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)

    def batches(self) -> Iterator[Batch]:
        """The batches of an epoch, each with its info."""
        return _Batches(iter(self.loader), self._epoch)

    def start(self) -> None:
        """Checks open files; the workers start with `batches`."""
        if isinstance(self.loader, DataLoader) and self.num_workers and is_forked(self.loader):
            warn_of_open_files(self.loader.dataset)

    def close(self, at_once: bool = False) -> None:
        """Ends the workers; `at_once` has no effect."""
        if hasattr(self.loader, "close"):
            self.loader.close()
        elif isinstance(self.loader, DataLoader):
            self.loader._iterator = None

    def set_epoch(self, epoch: int, then: int | None = None) -> None:
        """Sets the epoch in the batches' info, and in a loader that has `set_epoch`."""
        self._epoch = epoch
        if hasattr(self.loader, "set_epoch"):
            self.loader.set_epoch(epoch)

    def state_dict(self, after: BatchInfo | None = None) -> None:
        """None: torch's DataLoader has no position to save."""

    def load_state_dict(self, state: Any) -> None:
        """Ignored, for the same reason."""

    def IDs(self, info: BatchInfo) -> list[str]:
        """Empty: the IDs of a batch are not known."""
        return []

    def order_digest(self, after: BatchInfo | None = None) -> str:
        """Empty: the order is not known."""
        return ""

    def content_digest(self) -> None:
        """None: the content is not hashed."""

    def worker_ids(self) -> list[tuple[int, int]]:
        """Empty: torch's workers are not looked up."""
        return []


class _Batches(Iterator[Batch]):
    def __init__(self, iterator: Iterator[Any], epoch: int) -> None:
        self._iterator = iterator
        self._request = BatchRequest(epoch, 0, 0, _UNKNOWN)

    def __next__(self) -> Batch:
        try:
            data = next(self._iterator)
        except (RuntimeError, OSError, EOFError) as error:
            if (lost := lost_worker(error)) is not None:
                raise lost from error
            raise
        return Batch(data, BatchInfo(self._request, nbytes=nbytes(data)))


def with_info(loader: Any) -> Any:
    """The loader itself, or a TorchLoader around one that does not yield batches with info."""
    return loader if isinstance(loader, (SeededLoader, TorchLoader)) else TorchLoader(loader)
