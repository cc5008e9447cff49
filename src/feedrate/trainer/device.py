"""Device, precision, random seeds and kernels of the training process."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass

import numpy as np
import torch

from feedrate.config import TrainerConfig
from feedrate.errors import UserError


@dataclass(frozen=True)
class Precision:
    """How a step computes.

    Attributes:
        name: '32', 'bf16' or 'fp16'.
        dtype: of autocast, None without it.
        scaled: whether gradients need a scaler, as with float16.
        reason: why it was chosen.
    """

    name: str
    dtype: torch.dtype | None
    scaled: bool
    reason: str


def set_up_device(config: TrainerConfig, seed: int) -> torch.device:
    """Seeds the process's global generators, sets threads and kernels, and returns the device of `trainer.device`.

    Samples have random numbers of their own; the global generators decide initial weights and dropout.

    Raises:
        UserError: as `choose_device`.
    """
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)  # the last bits of sums depend on it
    set_arithmetic(config.matmul_precision, config.deterministic)
    return choose_device(config.device)


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
    """Sets, for the process, the precision of float32 matrix products and whether kernels must be deterministic."""
    torch.set_float32_matmul_precision(matmul_precision)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # needed by cuBLAS, which reads it at its start
    if deterministic or torch.are_deterministic_algorithms_enabled():  # the call imports torch._inductor, for seconds
        torch.use_deterministic_algorithms(deterministic)


def name_of(device: torch.device) -> str:
    """The device's product name; its type where torch does not know it."""
    get_name = getattr(torch.get_device_module(device), "get_device_name", None) if device.type != "cpu" else None
    return str(get_name(device)) if get_name is not None else device.type


def choose_precision(wanted: str | int, device: torch.device) -> Precision:
    """The precision that `trainer.precision` names; 'auto' is the fastest that trains as 32 bits do.

    Raises:
        UserError: the device cannot compute in it.
    """
    if wanted == "auto":
        if device.type == "xpu":
            return Precision("bf16", torch.bfloat16, False, "xpu devices compute bfloat16")
        if device.type != "cuda":
            return Precision("32", None, False, f"autocast gains little on {device.type}")
        if _has_bf16(device, emulated=False):
            return Precision("bf16", torch.bfloat16, False, "this GPU computes bfloat16, with the range of 32 bits")
        return Precision("fp16", torch.float16, True, "this GPU has no bfloat16; float16 with a gradient scaler")
    if wanted == "fp16" and device.type == "cpu":
        raise UserError("trainer.precision=fp16: float16 needs an accelerator; set trainer.precision=bf16 or 32")
    if wanted == "bf16" and device.type == "cuda" and not _has_bf16(device, emulated=True):
        raise UserError("trainer.precision=bf16: this GPU has no bfloat16; set trainer.precision=fp16 or 32")
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(str(wanted))
    return Precision(str(wanted), dtype, wanted == "fp16", "as set")


def _has_bf16(device: torch.device, emulated: bool) -> bool:
    with torch.accelerator.device_index(device.index):
        return bool(torch.cuda.is_bf16_supported(including_emulation=emulated))
