"""What `iter(loader)` and `loader.report()` return: the data of the batches, and how long the loop waited for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from feedrate.loader.batch import BatchInfo
from feedrate.loader.epoch_iterator import EpochIterator
from feedrate.system.cores import usable_cores
from feedrate.timing import EpochTimes
from feedrate.timing.epoch_times import Setup, Steps
from feedrate.timing.machine import FreeCores, WorkerID
from feedrate.timing.stages import clock_ns
from feedrate.timing.verdict import Verdict, judge, undecided


def setup_of(loader: Any) -> Setup:
    """How a SeededLoader or TorchLoader loads, with all usable cores."""
    return Setup(
        engine=loader.engine,
        traits=loader.traits,
        workers=loader.num_workers,
        prefetch=loader.prefetch_factor or 2,
        cores=float(usable_cores()),
        usable_cores=usable_cores(),
        threadable=loader.threadable,
    )


class Report:
    """Times of one epoch of `for data in loader`; without the first step, and the last, whose end is not known."""

    def __init__(self, loader: Any) -> None:
        self.begin(0, loader)

    def begin(self, epoch: int, loader: Any) -> None:
        """Begins the epoch's report."""
        self.epoch, self._setup = epoch, setup_of(loader)
        self._free_cores = FreeCores()
        self._free_cores.begin(loader.worker_ids())
        self._steps = Steps()

    def add(self, requested_ns: int, received_ns: int, info: BatchInfo, workers: Callable[[], list[WorkerID]]) -> None:
        """A batch was requested and received at these instants; `workers`, their IDs, is called twice a second."""
        samples = len(info.request.indices)
        self._steps.add(requested_ns, received_ns, received_ns, received_ns, samples, info.nbytes, info.timing)
        if self._free_cores.due:
            self._free_cores.measure(workers())

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
    def verdict(self) -> Verdict | None:
        """Whether the loop waited, why, and the remedy, with figures; None if there are too few batches."""
        times = self.times
        return judge(times, self._free_cores.applied_to(self._setup)) if times.enough else None

    def __str__(self) -> str:
        times, verdict = self.times, self.verdict
        text = f"epoch {self.epoch}: {times.samples.sum():,} samples in {len(times.samples):,} batches"
        if verdict is None:
            return f"{text}; {undecided(times)}" if len(times.samples) else text
        return (
            f"{text}, {verdict.figures['samples_per_s']:,.0f} samples/s; waited {verdict.figures['wait_pct']:.1f} % of "
            f"the time, first batch after {times.wait[0] / 1e9:.2f} s\n{verdict}"
        )


class DataIterator(Iterator[Any]):
    """What `iter(loader)` gives: the data of the batches. Writes the loader's report."""

    def __init__(self, batches: EpochIterator, loader: Any) -> None:
        self._batches, self._loader, self._begun = batches, loader, False

    def __next__(self) -> Any:
        requested_ns = clock_ns()
        batch = next(self._batches)
        received_ns = clock_ns()
        report = self._loader.report()
        if not self._begun:
            self._begun = True
            report.begin(batch.info.request.epoch, self._loader)
        report.add(requested_ns, received_ns, batch.info, self._loader.worker_ids)
        return batch.data

    def __len__(self) -> int:
        return len(self._batches)
