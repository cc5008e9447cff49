"""What a loader did in the present epoch: rates, and how long its user waited.

The training loop's own account, with transfer and compute, is timing/clock.py.
"""

from __future__ import annotations

import time
from array import array

import numpy as np


class Report:
    """Times of one epoch, a row per batch.

    The first batch counts as start-up: it is reported as `first_batch_s` and left out of rates and waiting.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self.begin(0)

    def begin(self, epoch: int) -> None:
        self.epoch = epoch
        self._wait_ns, self._load_ns, self._samples = array("q"), array("q"), array("q")
        self.bytes = 0
        self._first_ns = self._last_ns = 0

    def add(self, wait_ns: int, load_ns: int, samples: int, nbytes: int) -> None:
        """A batch was handed out."""
        self._last_ns = time.perf_counter_ns()
        if not self._wait_ns:
            self._first_ns = self._last_ns
        self._wait_ns.append(wait_ns)
        self._load_ns.append(load_ns)
        self._samples.append(samples)
        self.bytes += nbytes

    @property
    def batches(self) -> int:
        return len(self._wait_ns)

    @property
    def samples(self) -> int:
        return sum(self._samples)

    @property
    def first_batch_s(self) -> float:
        """Seconds that the first batch was waited for."""
        return self._wait_ns[0] / 1e9 if self._wait_ns else 0.0

    @property
    def samples_per_s(self) -> float:
        """Samples after the first batch, over the time in which they came."""
        elapsed = self._last_ns - self._first_ns
        return sum(self._samples[1:]) / elapsed * 1e9 if elapsed else 0.0

    @property
    def wait_pct(self) -> float:
        """Share of that time for which the loop stood still for the next batch."""
        elapsed = self._last_ns - self._first_ns
        return 100 * sum(self._wait_ns[1:]) / elapsed if elapsed else 0.0

    @property
    def worker_busy_pct(self) -> float:
        """Share of that time for which the workers made batches, on average."""
        elapsed = self._last_ns - self._first_ns
        return min(100.0, 100 * sum(self._load_ns[1:]) / elapsed / self._workers) if elapsed else 0.0

    def load_ms(self, *percentiles: float) -> list[float]:
        """Percentiles of the time that a worker spent to make a batch."""
        if not self._load_ns:
            return [0.0] * len(percentiles)
        found: list[float] = np.percentile(np.frombuffer(self._load_ns, dtype=np.int64) / 1e6, percentiles).tolist()
        return found

    def __str__(self) -> str:
        p50, p95 = self.load_ms(50, 95)
        return (
            f"epoch {self.epoch}: {self.samples:,} samples in {self.batches:,} batches, "
            f"{self.samples_per_s:,.0f} samples/s; "
            f"waited {self.wait_pct:.1f} % of the time, first batch after {self.first_batch_s:.2f} s; "
            f"load {p50:.1f} ms a batch (p95 {p95:.1f}), workers busy {self.worker_busy_pct:.0f} %"
        )
