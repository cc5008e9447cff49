"""Which device trains, in which precision, and why: each choice comes with its reason."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from feedrate.errors import UserError


@dataclass(frozen=True)
class Precision:
    """How a step computes.

    Attributes:
        name: '32', 'bf16' or 'fp16'.
        dtype: of autocast, None without it.
        scaled: whether gradients need a scaler, as float16's do.
        reason: for the user.
    """

    name: str
    dtype: torch.dtype | None
    scaled: bool
    reason: str


def choose_device(wanted: str) -> torch.device:
    """The device that `trainer.device` names; 'auto' is the accelerator if there is one.

    Raises:
        UserError: the device is not there.
    """
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if wanted == "auto":
        return found if found is not None else torch.device("cpu")
    kind, _, number = wanted.partition(":")
    device, index = torch.device(kind), int(number) if number else None  # torch takes index 256 for 0
    if device.type == "cpu":
        return device
    if found is None or device.type != found.type:
        there = f"only {found.type} and cpu" if found is not None else "no accelerator"
        raise UserError(
            f"trainer.device={wanted}: this machine has {there} that torch can use; set trainer.device=auto"
        )
    count = torch.accelerator.device_count()
    if index is None:
        return device
    if index >= count:
        raise UserError(f"trainer.device={wanted}: this machine has {count} {device.type} device(s), counted from 0")
    return torch.device(device.type, index)


def set_arithmetic(matmul_precision: str, deterministic: bool) -> None:
    """For the whole process: torch's float32 matrix products, and whether kernels must give the same bits each time."""
    torch.set_float32_matmul_precision(matmul_precision)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it, and reads it when it starts
    if deterministic or torch.are_deterministic_algorithms_enabled():  # the call imports torch._inductor, for seconds
        torch.use_deterministic_algorithms(deterministic)


def name_of(device: torch.device) -> str:
    """As its maker calls it; the type where torch does not know."""
    ask = getattr(torch.get_device_module(device), "get_device_name", None) if device.type != "cpu" else None
    return str(ask(device)) if ask is not None else device.type


def choose_precision(wanted: str | int, device: torch.device) -> Precision:
    """The precision that `trainer.precision` names; 'auto' is the fastest that trains as 32 bits do.

    Raises:
        UserError: the device cannot compute in it.
    """
    if wanted == "auto":
        if device.type == "cuda":
            if _has_bf16(device, emulated=False):
                return Precision(
                    "bf16", torch.bfloat16, False, "this GPU computes bfloat16, whose range is that of 32 bits"
                )
            return Precision("fp16", torch.float16, True, "this GPU has no bfloat16; float16 with a gradient scaler")
        if device.type == "xpu":
            return Precision("bf16", torch.bfloat16, False, "xpu devices compute bfloat16")
        return Precision("32", None, False, f"autocast gains little on {device.type}")
    if wanted == "fp16" and device.type == "cpu":
        raise UserError("trainer.precision=fp16: float16 needs an accelerator; set trainer.precision=bf16 or 32")
    if wanted == "fp16":
        return Precision("fp16", torch.float16, True, "as set")
    if wanted == "bf16":
        if device.type == "cuda" and not _has_bf16(device, emulated=True):
            raise UserError("trainer.precision=bf16: this GPU has no bfloat16; set trainer.precision=fp16 or 32")
        return Precision("bf16", torch.bfloat16, False, "as set")
    return Precision("32", None, False, "as set")


def _has_bf16(device: torch.device, emulated: bool) -> bool:
    with torch.accelerator.device_index(device.index):
        return bool(torch.cuda.is_bf16_supported(including_emulation=emulated))
