"""Batches in page-locked memory, from which copies to an accelerator do not block the host."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader
from torch.utils.data._utils.pin_memory import pin_memory

from feedrate.loader.batch import Batch
from feedrate.system.device import has_streams


def pins(settings: DataLoader[Any]) -> str | None:
    """The `device` argument of `pinned` for a loader's batches; None where they are not pinned."""
    device = torch.accelerator.current_accelerator() if settings.pin_memory else None
    able = device is not None and has_streams(device) and torch.accelerator.is_available()
    return settings.pin_memory_device if able else None


def pinned(batch: Batch, device: str | None) -> Batch:
    """The batch with its tensors in page-locked memory.

    Args:
        device: in whose context the memory is allocated; "" for the current one, None leaves the batch as it is.
    """
    if device is None or batch.info.error is not None:
        return batch
    with torch.accelerator.device_index(torch.device(device).index if device else None):
        return Batch(pin_memory(batch.data), batch.info)
