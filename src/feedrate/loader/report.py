"""What `Loader.report()` returns: rates of the current epoch, and how long the loop waited for batches."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from feedrate.loader.batch import BatchInfo
from feedrate.system.cores import usable_cores
from feedrate.timing import EpochTimes
from feedrate.timing.epoch_times import Setup, Steps
from feedrate.timing.machine import FreeCores, Task
from feedrate.timing.verdict import Verdict, judge, undecided


def setup_of(loader: Any) -> Setup:
    """How a SeededLoader or TorchLoader loads; with all usable cores."""
    return Setup(
        engine=loader.engine,
        traits=loader.traits,
        workers=loader.num_workers,
        prefetch=loader.prefetch_factor or 2,
        cores=float(usable_cores()),
        threadable=loader.threadable,
    )


class Report:
    """Times of one epoch of `for data in loader`, a row per batch. (The training loop has its own clock.)

    The first batch is start-up, reported as `first_batch_s`. Rates and waiting are of the steps between it and the last
    batch, whose step has no known end.
    """

    def __init__(self, loader: Any) -> None:
        self.begin(0, loader)

    def begin(self, epoch: int, loader: Any) -> None:
        """Begins the epoch's report."""
        self.epoch, self._setup = epoch, setup_of(loader)
        self._free_cores = FreeCores()
        self._free_cores.begin(loader.tasks())
        self._steps = Steps()

    def add(self, requested_ns: int, received_ns: int, info: BatchInfo) -> None:
        """A batch was requested and received at these times."""
        samples = len(info.request.indices)
        self._steps.add(requested_ns, received_ns, received_ns, received_ns, samples, info.nbytes, info.timing)

    @property
    def due(self) -> bool:
        """Whether `look` should be called."""
        return self._free_cores.due

    def look(self, workers: Iterable[Task]) -> None:
        """Measures how many cores are free."""
        self._free_cores.look(workers)

    @property
    def times(self) -> EpochTimes:
        """The rows; all that happens between receiving a batch and requesting the next counts as compute."""
        times = self._steps.times()
        received = times.requested + times.wait
        compute = np.append(times.requested[1:] - received[:-1], 0)[: len(received)]
        number = np.arange(len(received))
        steady = (number > 0) & (number < len(received) - 1)
        return replace(times, compute=compute, steady=steady)

    @property
    def batches(self) -> int:
        return len(self._steps)

    @property
    def samples(self) -> int:
        return int(self.times.samples.sum())

    @property
    def bytes(self) -> int:
        """Of all batches."""
        return int(self.times.bytes.sum())

    @property
    def first_batch_s(self) -> float:
        """Seconds until the first batch."""
        return float(self.times.wait[0]) / 1e9 if self.batches else 0.0

    @property
    def samples_per_s(self) -> float:
        """Over the steps that count; nan if there are too few."""
        times = self.times
        return 1e9 * self._share(times.samples, times)

    @property
    def wait_pct(self) -> float:
        """Percentage of that time spent waiting for the next batch; nan if there are too few steps."""
        times = self.times
        return 100 * self._share(times.wait, times)

    @property
    def worker_busy_pct(self) -> float:
        """Percentage of that time in which a worker loads, on average; nan if there are too few steps."""
        times = self.times
        return min(100 * self._share(times.load, times) / max(1, self._setup.workers), 100.0)  # nan stays nan

    def load_ms(self, *percentiles: float) -> list[float]:
        """Percentiles of the time in which a worker loads a batch."""
        if not self.batches:
            return [0.0] * len(percentiles)
        found: list[float] = np.percentile(self.times.load / 1e6, percentiles).tolist()
        return found

    @property
    def verdict(self) -> Verdict | None:
        """Whether the loop waited, why, and the remedy; None if there are too few batches."""
        times, setup = self.times, self._setup
        if (free := self._free_cores.mean()) is not None:
            setup = replace(
                setup,
                cores=max(1.0, min(setup.cores, free)),
                usable_cores=usable_cores(),
                free_cores=free,
                free_range=self._free_cores.range(),
            )
        return judge(times, setup) if times.enough else None

    @staticmethod
    def _share(part: np.ndarray, times: EpochTimes) -> float:
        """Per nanosecond of the steps that count; nan if there are too few."""
        return float(part[times.counted].sum()) / int(times.elapsed[times.counted].sum()) if times.enough else math.nan

    def __str__(self) -> str:
        if not self.times.enough:
            delivered = f"epoch {self.epoch}: {self.samples:,} samples in {self.batches:,} batches"
            return f"{delivered}; {undecided(self.times)}" if self.batches else delivered
        p50, p95 = self.load_ms(50, 95)
        return (
            f"epoch {self.epoch}: {self.samples:,} samples in {self.batches:,} batches, "
            f"{self.samples_per_s:,.0f} samples/s; "
            f"waited {self.wait_pct:.1f} % of the time, first batch after {self.first_batch_s:.2f} s; "
            f"load {p50:.1f} ms a batch (p95 {p95:.1f}), workers busy {self.worker_busy_pct:.0f} %"
            f"\n{self.verdict}"
        )
