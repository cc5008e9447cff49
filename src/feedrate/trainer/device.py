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
    """How a step computes."""

    name: str  # 32, bf16, fp16
    dtype: torch.dtype | None  # of autocast, None without it
    scaled: bool  # whether gradients need a scaler, as with float16


def set_up_device(config: TrainerConfig, seed: int) -> torch.device:
    """Seeds the process's global generators, sets threads and kernels, and returns the device of `trainer.device`.

    Samples have random numbers of their own; the global generators decide initial weights and dropout.
    """
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)  # the last bits of sums depend on it
    set_arithmetic(config.matmul_precision, config.deterministic)
    return choose_device(config.device)


def choose_device(wanted: str) -> torch.device:
    """The device that `trainer.device` names; 'auto' is the accelerator if there is one."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if wanted == "auto":
        return found if found is not None else torch.device("cpu")
    kind, _, number = wanted.partition(":")
    if (kind := torch.device(kind).type) == "cpu":
        return torch.device("cpu")
    count = torch.accelerator.device_count() if found is not None and found.type == kind else 0
    if int(number or 0) >= count:
        raise UserError(
            f"trainer.device={wanted}: this machine has {count} {kind} device(s), counted from 0; "
            "set trainer.device=auto"
        )
    return torch.device(kind, int(number)) if number else torch.device(kind)


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
    """The precision that `trainer.precision` names; 'auto' is the fastest that trains as 32 bits do."""
    chosen = str(wanted)
    if wanted == "auto":
        if device.type == "cuda":
            chosen = "bf16" if _has_bf16(device, emulated=False) else "fp16"
        else:
            chosen = "bf16" if device.type == "xpu" else "32"
    elif (chosen == "fp16" and device.type == "cpu") or (
        chosen == "bf16" and device.type == "cuda" and not _has_bf16(device, emulated=True)
    ):
        raise UserError(f"trainer.precision={wanted}: this {device.type} device cannot; set trainer.precision=auto")
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(chosen)
    return Precision(chosen, dtype, chosen == "fp16")


def _has_bf16(device: torch.device, emulated: bool) -> bool:
    with torch.accelerator.device_index(device.index):
        return bool(torch.cuda.is_bf16_supported(including_emulation=emulated))
