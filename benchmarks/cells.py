"""Workloads with a known cost: samples and steps that sleep, or compute in pure Python. Needs torch only."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

BATCH = 8
SAMPLE_MS = (0.25, 1.0, 4.0)
STEP_MS = (1.0, 6.0, 24.0)
ENGINES = (("inline", 0), ("process", 1), ("process", 2), ("thread", 1), ("thread", 2))


@dataclass(frozen=True)
class Cell:
    """A workload and a loader."""

    kind: str
    sample_ms: float
    step_ms: float
    engine: str
    workers: int
    prefetch: int = 2

    def __str__(self) -> str:
        return f"{self.kind} {self.sample_ms:g} ms, {self.engine} {self.workers}, step {self.step_ms:g} ms"


CELLS = [
    Cell(kind, sample_ms, step_ms, engine, workers)
    for kind, sample_ms, (engine, workers), step_ms in itertools.product(("sleep", "burn"), SAMPLE_MS, ENGINES, STEP_MS)
]
CONTROLS = [
    Cell("burn", 0.01, 24.0, "inline", 0),
    Cell("sleep", 0.02, 40.0, "inline", 0),
    Cell("sleep", 1.0, 24.0, "thread", 1),
    Cell("burn", 1.0, 24.0, "process", 1),
    Cell("sleep", 1.0, 24.0, "process", 1),
    Cell("sleep", 4.0, 24.0, "thread", 2),
    Cell("sleep", 4.0, 24.0, "process", 2),
    Cell("burn", 4.0, 40.0, "process", 1),
]


class Costly(Dataset[tuple[Tensor, int]]):
    """A sample takes `sample_ms`: sleeping ('sleep'), or computing in pure Python ('burn').

    The system ends a sleep late, by an amount that varies. Within a batch the next sample sleeps less by as much, so
    that the time of a batch is known.
    """

    thread_safe = True

    def __init__(self, kind: str, sample_ms: float) -> None:
        self.kind, self.seconds = kind, sample_ms / 1e3

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self.kind == "sleep":
            if index % BATCH == 0:
                _sleeper.until = time.perf_counter()
            _sleeper.until += self.seconds
            time.sleep(max(0.0, _sleeper.until - time.perf_counter()))
        else:
            use_cpu(self.seconds)
        return torch.zeros(16), 0


_sleeper = threading.local()


def use_cpu(seconds: float) -> None:
    """Computes for `seconds` of the thread's CPU time; on a shared core the wall time is longer."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(200))
