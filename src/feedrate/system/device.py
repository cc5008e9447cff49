"""Accelerators of any type (CUDA, XPU, or one that a package adds to torch): what they can do, and their errors."""

from __future__ import annotations

import torch
from torch import Tensor

from feedrate.errors import UserError


def has_streams(device: torch.device) -> bool:
    """Whether batches can be copied to it on a separate stream; False for the CPU and MPS."""
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


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error says that the device's memory ran out, in torch's words, a library's or those of MPS."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        said in text for said in ("backend out of memory", "error: out of memory", "STATUS_ALLOC_FAILED")
    )


def explained(error: BaseException | None) -> UserError | None:
    """What an error of a device means, wherever it came up; None for any other error."""
    text = str(error).partition("\n")[0]
    if out_of_memory(error):
        return UserError("the device ran out of memory; lower loader.batch_size, or take a smaller model")
    if isinstance(error, RuntimeError) and (found := text.partition(" does not have a deterministic impl"))[1]:
        return UserError(
            f"trainer.deterministic=true: {found[0]} has no deterministic kernel on this device; "
            "set trainer.deterministic=false, or replace it in the model"
        )
    if isinstance(error, torch.AcceleratorError):  # of a kernel that was issued earlier
        return UserError(f"the device has failed: {text}\nThe same run with trainer.device=cpu says where")
    return None
