"""Detects memory that grows from epoch to epoch, as where a list keeps tensors."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from feedrate.timing.machine import WorkerID, own_memory_mb

SHARE, LEAST_MB = 0.1, 20.0  # least growth that is reported: as a share of the memory, and in MB
EPOCHS, PARTS = 4, 8  # least number of epochs after the first; most parts of the run, each of which must have grown
EVEN = 0.25  # of the mean growth of all parts, that each must have grown: a cache that fills up levels off


class MemoryGrowth:
    """Memory at the same point of each epoch: of the run's processes, and of its tensors on an accelerator."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._mb: dict[str, list[float]] = {"host": [], "device": []}

    def measure(self, workers: Iterable[WorkerID]) -> None:
        """Measures the memory; to be called once in each epoch."""
        self._mb["host"].append(own_memory_mb(workers))
        if self._device.type not in ("cpu", "mps"):
            self._mb["device"].append(torch.accelerator.memory_allocated(self._device) / 1e6)

    def notes(self) -> list[str]:
        """A line for each memory that grew steadily after the first epoch."""
        return [
            f"{where} memory grew by {(mb[-1] - mb[1]) / 1e3:.2g} GB over {len(mb) - 1} epochs "
            f"({mb[1] / 1e3:.2g} to {mb[-1] / 1e3:.2g} GB); look for lists that keep tensors"
            for where, mb in self._mb.items()
            if grew(mb)
        ]


def grew(mb: list[float]) -> bool:
    """Whether memory grew steadily over the epochs after the first."""
    after = mb[1:]
    if len(after) < EPOCHS or after[-1] - after[0] < max(SHARE * after[0], LEAST_MB):
        return False
    steps = np.diff([part.mean() for part in np.array_split(after, min(PARTS, len(after)))])
    return bool(steps.min() >= EVEN * steps.mean())
