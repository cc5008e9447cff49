"""A model that ends its process in a chosen way, once: the second time it trains; or waits to be killed. For sweeps."""

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
        hold_at: the start, counted from 1 by the notes, whose fifth training step does not end before it is killed;
            0: none.
    """

    def __init__(
        self,
        sample_shape: tuple[int, ...],
        num_outputs: int,
        death: str,
        notes: str,
        edits: str = "",
        password: str = "",
        hold_at: int = 0,
    ) -> None:
        super().__init__()
        number = len(list(Path(notes).glob(f"{death}-*"))) + 1
        first = number == 1
        if death == "deaf":
            for signum in (signal.SIGINT, signal.SIGTERM):
                signal.signal(signum, signal.SIG_IGN)
        (Path(notes) / f"{death}-{os.getpid()}").touch()
        if edits:
            Path(edits).write_text("# @package _global_\ntrainer: {max_epochs: 3}\n")
        if first and death == "raise":
            raise ValueError("this net was told to fail")
        if first and death == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if death in ("wait", "deaf"):
            time.sleep(600)
        self.pause_s = 0.05 if death == "slow" else 0.0
        self.steps, self.held_in = 0, 5 if number == hold_at else 0
        self.layer = nn.Linear(torch.Size(sample_shape).numel(), num_outputs)

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        self.steps += self.training
        time.sleep(600 if self.training and self.steps == self.held_in else self.pause_s)
        return self.layer(X.flatten(1))
