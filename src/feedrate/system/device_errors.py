"""Errors that torch raises for a device, as errors that name the remedy."""

from __future__ import annotations

import torch

from feedrate.errors import UserError


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
