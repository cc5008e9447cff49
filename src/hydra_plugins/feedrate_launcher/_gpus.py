"""Which NVIDIA GPUs the jobs of a sweep may use: side by side, each gets one for itself where there are as many."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable

VARIABLE = "CUDA_VISIBLE_DEVICES"


def visible() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them, asked for without loading CUDA; empty where none is known."""
    if (given := os.environ.get(VARIABLE)) is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    try:
        import pynvml

        pynvml.nvmlInit()
        # by their identity: CUDA counts the fastest first
        return [
            str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(number)))
            for number in range(pynvml.nvmlDeviceGetCount())
        ]
    except Exception:  # there is no such library, no driver, or no GPU
        return []


def least_used(gpus: list[str], in_use: Iterable[str]) -> str:
    """The GPU that the fewest jobs have; of equals the first."""
    count = Counter(in_use)
    return min(gpus, key=lambda gpu: count[gpu])
