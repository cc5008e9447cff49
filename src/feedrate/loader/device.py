"""What loader and trainer ask of a device, whatever its type: CUDA, XPU, or one that a package brings to torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data._utils.pin_memory import pin_memory


def has_streams(device: torch.device) -> bool:
    """Whether page-locked batches are copied to it while a step runs; neither the CPU nor MPS has such streams."""
    return device.type not in ("cpu", "mps")


def may_lack_float64(device: torch.device) -> bool:
    """MPS has none, and some of Intel's GPUs have none."""
    return device.type in ("mps", "xpu")


def single(tensor: Tensor, device: torch.device) -> Tensor:
    """To be called on the host: float64 as float32 for a device that may lack it; all is computed in that anyway."""
    return tensor.float() if tensor.dtype == torch.float64 and may_lack_float64(device) else tensor


def make_current(device: torch.device) -> None:
    """The accelerator on which this thread creates what names no device is that one, where it has a number."""
    if device.type != "cpu" and device.index is not None:
        torch.accelerator.set_device_index(device.index)


def in_use() -> bool:
    """Whether the accelerator's runtime runs in this process, so that a process forked from it could not use it."""
    device = torch.accelerator.current_accelerator()
    initialized = getattr(torch.get_device_module(device), "is_initialized", None) if device is not None else None
    return initialized is not None and bool(initialized())


def pins(settings: DataLoader[Any]) -> str | None:
    """What `pinned` is to be given for the batches of a loader; None where it is to be left."""
    device = torch.accelerator.current_accelerator() if settings.pin_memory else None
    able = device is not None and has_streams(device) and torch.accelerator.is_available()
    return settings.pin_memory_device if able else None


def pinned(batch: Any, device: str) -> Any:
    """The batch in page-locked memory.

    Args:
        device: in whose context it is allocated, in whichever thread; empty for the current one.
    """
    with torch.accelerator.device_index(torch.device(device).index if device else None):
        return pin_memory(batch)
