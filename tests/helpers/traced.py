"""A model that writes down each step it takes, for comparing a run that was killed with one that was not."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """Two layers with batch norm and dropout, so that buffers and random numbers matter too.

    Each batch appends a line to `trace`: `train STEP X OUTPUTS GRADIENT` or `validation STEP X OUTPUTS`, all but the
    step as hashes. The gradient is that of the loss by the outputs, so equal lines mean equal losses bit for bit.

    Args:
        trace: file.
        pause_ms: that a batch takes besides.
    """

    def __init__(self, sample_shape: tuple[int, ...], num_outputs: int, trace: str, pause_ms: float = 10.0) -> None:
        super().__init__()
        inputs = torch.Size(sample_shape).numel()
        self.layers = nn.Sequential(
            nn.Linear(inputs, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, num_outputs)
        )
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._trace, self._pause_s = Path(trace), pause_ms / 1000

    def forward(self, X: Tensor) -> Tensor:
        time.sleep(self._pause_s)
        if self.training:
            self.steps += 1
        outputs: Tensor = self.layers(X.flatten(1))
        line = f"{int(self.steps)} {_hash(X)} {_hash(outputs)}"
        if outputs.requires_grad:
            outputs.register_hook(lambda gradient: self._write(f"train {line} {_hash(gradient)}"))
        elif not self.training:
            self._write(f"validation {line}")
        return outputs

    def _write(self, line: str) -> None:
        descriptor = os.open(self._trace, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        try:
            os.write(descriptor, f"{line}\n".encode())  # one call, so that a kill leaves no half of it
        finally:
            os.close(descriptor)


def _hash(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()[:16]
