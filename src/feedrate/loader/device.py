"""Accelerators of any type (CUDA, XPU, or one that a package adds to torch): streams and page-locked memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data._utils.pin_memory import pin_memory

from feedrate.loader.batch import Batch


def has_streams(device: torch.device) -> bool:
    """Whether batches can be copied to it on a stream of their own; not so on the CPU and MPS."""
    return device.type not in ("cpu", "mps")


def may_lack_float64(device: torch.device) -> bool:
    """Whether it may be without float64: MPS is, and some of Intel's GPUs."""
    return device.type in ("mps", "xpu")


def single(tensor: Tensor, device: torch.device) -> Tensor:
    """A float64 tensor on the host as float32, for a device that may lack float64."""
    return tensor.float() if tensor.dtype == torch.float64 and may_lack_float64(device) else tensor


def make_current(device: torch.device) -> None:
    """Makes it this thread's default accelerator, if it has an index."""
    if device.type != "cpu" and device.index is not None:
        torch.accelerator.set_device_index(device.index)


def in_use() -> bool:
    """Whether this process has initialised an accelerator, after which a forked process could not use it."""
    device = torch.accelerator.current_accelerator()
    initialized = getattr(torch.get_device_module(device), "is_initialized", None) if device is not None else None
    return initialized is not None and bool(initialized())


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
