"""Samples and a model that hang at a chosen place, longer than any test waits, and leave a note when they begin to.

Or the worker that loads a sample is killed there, once.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch
from torch import nn

HANGS_S = 1000.0


class Samples(torch.utils.data.Dataset):
    """64 samples of noise in each partition.

    Args:
        where: start (when the dataset is made), sample or validation (at one sample of a partition), nowhere, or
            killed (at one sample, while there is no note).
        note: file that is made when it begins to hang.
    """

    num_outputs = 2

    def __init__(self, partition: str, where: str, note: str) -> None:
        self._note = Path(note)
        self._kills = where == "killed" and partition == "train"
        self._slow = {"sample": "train", "validation": "validation"}.get(where) == partition
        self.list_IDs = [f"sample-{i}" for i in range(64)]
        if where == "start":
            self._hang()

    def _hang(self) -> None:
        self._note.touch()
        time.sleep(HANGS_S)

    def __len__(self) -> int:
        return len(self.list_IDs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if self._slow and index == 41:
            self._hang()
        if self._kills and index == 41 and torch.utils.data.get_worker_info() and not self._note.exists():
            self._note.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.full((4,), float(index)), index % 2


class Net(nn.Module):
    """One layer; the forward pass of the third step hangs."""

    def __init__(self, sample_shape: tuple[int, ...], num_outputs: int, note: str) -> None:
        super().__init__()
        self.layer, self._note, self._steps = nn.Linear(*sample_shape, num_outputs), Path(note), 0

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        self._steps += 1
        if self._steps == 3:
            self._note.touch()
            time.sleep(HANGS_S)
        outputs: torch.Tensor = self.layer(X)
        return outputs
