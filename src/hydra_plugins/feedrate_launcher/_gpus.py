"""The NVIDIA GPUs that the jobs of a sweep may use."""

from __future__ import annotations

import os

VARIABLE = "CUDA_VISIBLE_DEVICES"


def visible() -> list[str]:
    """GPUs as CUDA_VISIBLE_DEVICES names them, found without loading CUDA; empty where none is known."""
    if (given := os.environ.get(VARIABLE)) is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return [str(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles]  # CUDA numbers the fastest first
    except Exception:  # no such library, no driver, or no GPU
        return []
