"""The main process's global random generators, for initial weights and dropout; samples have numbers of their own."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_everything(seed: int, num_threads: int | None) -> None:
    """Seeds torch, NumPy and Python, and sets torch's threads, on whose number the last bits of sums depend."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    if num_threads is not None:
        torch.set_num_threads(num_threads)
