"""What a loader did in the present epoch: rates, and how long its user waited.

The training loop's own account, with transfer and validation, is timing/clock.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from feedrate.system.cores import usable_cores
from feedrate.timing import EpochTimes
from feedrate.timing.epoch_times import AT_ONCE, Setup, Steps
from feedrate.timing.machine import FreeCores, Task
from feedrate.timing.verdict import Verdict, judge, undecided


def setup_of(loader: Any) -> Setup:
    """How a loader, torch's own included, makes its batches; with all cores that may be used."""
    return Setup(
        engine=getattr(loader, "engine", "torch"),
        workers=int(getattr(loader, "num_workers", 0)),
        prefetch=getattr(loader, "prefetch_factor", None) or 2,
        batch_size=getattr(loader, "batch_size", None) or 1,
        cores=float(usable_cores()),
        threadable=getattr(loader, "threadable", False),
    )


class Report:
    """Times of one epoch, a row per batch.

    The first batch counts as start-up: it is reported as `first_batch_s`. Rates and waiting, here as in the verdict,
    are of the steps between it and the last batch, of whose step the end is not known.
    """

    def __init__(self, setup: Setup) -> None:
        self.begin(0, setup)

    def begin(self, epoch: int, setup: Setup, workers: Iterable[Task] = ()) -> None:
        """A pass through an epoch begins, with these workers."""
        self.epoch, self._setup = epoch, setup
        self._free_cores = FreeCores()
        self._free_cores.begin(workers)
        self._steps = Steps()
        self._elsewhere: Callable[[], EpochTimes] | None = None

    def kept_elsewhere(self, times: Callable[[], EpochTimes]) -> None:
        """The training loop keeps the account of this pass, as `times` gives it, and nothing is to be written twice."""
        self._elsewhere = times

    def add(self, asked_ns: int, handed_ns: int, made: tuple[int, ...], samples: int, nbytes: int) -> None:
        """A batch was asked for, and handed out."""
        if self._elsewhere is None:
            rows = self._steps
            rows.fresh.append((asked_ns, handed_ns, handed_ns, handed_ns, samples, nbytes, made))
            if len(rows.fresh) == AT_ONCE:
                rows.settle()

    @property
    def due(self) -> bool:
        """Whether it is time to look at what others take of the cores."""
        return self._elsewhere is None and self._free_cores.due

    def look(self, workers: Iterable[Task]) -> None:
        """Looks at what others take of the cores."""
        self._free_cores.look(workers)

    @property
    def times(self) -> EpochTimes:
        """The account, in which all that the user did with a batch before he asked for the next is its compute."""
        if self._elsewhere is not None:
            return self._elsewhere()
        times = self._steps.times()
        handed = times.asked + times.wait
        compute = np.append(times.asked[1:] - handed[:-1], 0)[: len(handed)]
        number = np.arange(len(handed))
        steady = (number > 0) & (number < len(handed) - 1)
        return replace(times, compute=compute, elapsed=times.wait + compute, steady=steady)

    @property
    def batches(self) -> int:
        return len(self._steps) if self._elsewhere is None else len(self.times.wait)

    @property
    def samples(self) -> int:
        return int(self.times.samples.sum())

    @property
    def bytes(self) -> int:
        """Of all batches."""
        return int(self.times.bytes.sum())

    @property
    def first_batch_s(self) -> float:
        """Seconds that the first batch was waited for."""
        return float(self.times.wait[0]) / 1e9 if self.batches else 0.0

    @property
    def samples_per_s(self) -> float:
        """Samples of the steps that count, over the time that these took; nan where those are too few."""
        times = self.times
        return 1e9 * self._share(times.samples, times)

    @property
    def wait_pct(self) -> float:
        """Share of that time for which the loop stood still for the next batch; nan as `samples_per_s`."""
        times = self.times
        return 100 * self._share(times.wait, times)

    @property
    def worker_busy_pct(self) -> float:
        """Share of that time for which the workers made batches, on average; nan as `samples_per_s`."""
        times = self.times
        return min(100 * self._share(times.load, times) / max(1, self._setup.workers), 100.0)  # nan stays nan

    def load_ms(self, *percentiles: float) -> list[float]:
        """Percentiles of the time that a worker spent to make a batch."""
        if not self.batches:
            return [0.0] * len(percentiles)
        found: list[float] = np.percentile(self.times.load / 1e6, percentiles).tolist()
        return found

    @property
    def verdict(self) -> Verdict | None:
        """Whether and why its user waited, and what would end it; None where there are too few batches."""
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
        """Of what counts, for each nanosecond; nan where that is too little."""
        return float(part[times.counted].sum()) / int(times.elapsed[times.counted].sum()) if times.enough else math.nan

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_elsewhere": None}  # a training loop's clock is no part of it

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
