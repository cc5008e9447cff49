"""A model that ends its process in a chosen way, once: the second time it trains. For the tests of sweeps."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch
from torch import nn


class Net(nn.Module):
    """One layer.

    Args:
        death: no, raise, kill, wait (until it is interrupted), deaf (it waits, and signals do not interrupt it), or
            slow (it does not die, and a step takes 50 ms).
        notes: folder in which each start leaves a file `DEATH-PROCESS`.
        edits: a configuration file that is overwritten, as by a person who goes on working while the sweep runs.
        password: not used.
    """

    def __init__(
        self,
        sample_shape: tuple[int, ...],
        num_outputs: int,
        death: str,
        notes: str,
        edits: str = "",
        password: str = "",
    ) -> None:
        super().__init__()
        first = not list(Path(notes).glob(f"{death}-*"))
        (Path(notes) / f"{death}-{os.getpid()}").touch()
        if edits:
            Path(edits).write_text("# @package _global_\ntrainer: {max_epochs: 3}\n")
        if first and death == "raise":
            raise ValueError("this net was told to fail")
        if first and death == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if death == "deaf":
            for signum in (signal.SIGINT, signal.SIGTERM):
                signal.signal(signum, signal.SIG_IGN)
        if death in ("wait", "deaf"):
            time.sleep(600)
        self.pause_s = 0.05 if death == "slow" else 0.0
        self.layer = nn.Linear(torch.Size(sample_shape).numel(), num_outputs)

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        time.sleep(self.pause_s)
        return self.layer(X.flatten(1))
