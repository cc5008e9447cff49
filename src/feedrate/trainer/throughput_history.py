"""Step times and machine load over the epochs of a run: what verdict, slow samples and timeline are computed from."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from feedrate.loader import setup_of
from feedrate.reporting.trace import TIMELINE_STEPS
from feedrate.timing import EpochTimes
from feedrate.timing.epoch_times import Setup, cut, joined
from feedrate.timing.machine import FreeCores, WorkerID, queued_s
from feedrate.timing.memory import MemoryGrowth
from feedrate.timing.stages import Slowest
from feedrate.timing.verdict import Verdict, judge

MOST_STEPS = 50_000  # that are kept, of the last epochs: some 8 MB


class ThroughputHistory:
    """Collects the times of a run's epochs.

    In the first epoch files come from the disk and workers start: it is left out as soon as there is another one.

    Args:
        loader: of the training partition.
        packable: see timing.epoch_times.Setup.
        device: whose memory is watched.
    """

    def __init__(self, loader: Any, packable: str = "", device: torch.device | None = None) -> None:
        self._loader, self._packable = loader, packable if loader.seed is not None else ""
        self._epochs: deque[tuple[EpochTimes, float]] = deque()  # with the seconds that workers queued for a core
        self._cold = True  # only the first epoch is kept
        self._open = False  # within an epoch
        self._queued_before: float | None = None  # within training
        self._queued_s = 0.0  # in the last epoch's training
        self._slowest = Slowest()
        self._free_cores = FreeCores()
        self.memory = MemoryGrowth(device or torch.device("cpu"))

    def begin(self) -> None:
        """Call at the start of an epoch's training."""
        if self._cold and self._epochs:
            self._free_cores = FreeCores()
        self._open, self._queued_before = True, queued_s(self._workers())
        self._free_cores.begin(self._workers())

    def step(self) -> None:
        """Call after each step; twice a second it measures how busy other processes keep the cores."""
        if self._free_cores.due:
            self._free_cores.measure(self._workers())

    def trained(self) -> None:
        """Call at the end of an epoch's training, before its validation."""
        if self._queued_before is None:
            return
        workers = self._workers()
        self._queued_s, self._queued_before = max(0.0, queued_s(workers) - self._queued_before), None
        if workers or not self._loader.num_workers:  # the CPU time of workers that have ended is unknown
            self._free_cores.measure(workers)
        self._free_cores.end()
        self.memory.measure(workers)

    def end(self, times: EpochTimes) -> None:
        """Call at the end of an epoch, with the times of its training."""
        self._open = False
        if not len(times.wait):
            return
        if self._cold and self._epochs:
            self._cold = False
            self._epochs.clear()
        self._epochs.append((times, self._queued_s))
        while len(self._epochs) > 1 and sum(len(kept.wait) for kept, _ in self._epochs) > MOST_STEPS:
            self._epochs.popleft()

    def end_run(self, times: EpochTimes) -> None:
        """Call at the end of the run, with the times of an epoch that was interrupted, if one was.

        It is kept if it has enough steps, or if there is no other epoch.
        """
        if not self._open:
            return
        self._open = False
        self.trained()
        if not self._epochs or times.enough:
            self.end(times)

    def add_slow_samples(self, samples: Sequence[tuple[int, int]]) -> None:
        """Adds slow samples: (index, load time in ns) of each."""
        self._slowest.add(*zip(*samples, strict=True))

    @property
    def times(self) -> EpochTimes | None:
        """Times of all kept epochs, None before the first one."""
        return joined(times for times, _ in self._epochs) if self._epochs else None

    def verdict(self) -> Verdict | None:
        """The verdict on all epochs but the first, or on the first alone; None after too few steps."""
        times = self.times
        if times is None or not times.enough:
            return None
        return judge(times, self.setup(times))

    def setup(self, times: EpochTimes | None = None) -> Setup:
        """Loader and machine during the kept epochs; free cores only where `times` are given."""
        found = setup_of(self._loader)
        if times is not None and (times.known or not found.workers):  # the CPU time of torch's workers is unknown
            found = self._free_cores.applied_to(found)
        return replace(found, worker_delay_s=sum(queued for _, queued in self._epochs), packable=self._packable)

    def excerpt(self) -> EpochTimes | None:
        """Consecutive steps from the middle of the last epoch, for the timeline."""
        if not self._epochs:
            return None
        last = self._epochs[-1][0]
        begin = max(0, (len(last.wait) - TIMELINE_STEPS) // 2)
        return cut(last, slice(begin, begin + TIMELINE_STEPS))

    def slow_samples(self) -> list[dict[str, Any]]:
        """ID and load_ms of the samples that took longest to load, where samples are timed one by one."""
        names = self._loader.list_IDs
        return [
            {"ID": str(index) if names is None else names[index], "load_ms": round(ns / 1e6, 3)}
            for index, ns in self._slowest.longest()
        ]

    def _workers(self) -> list[WorkerID]:
        return self._loader.worker_ids()  # type: ignore[no-any-return]


def packable(dataset: Mapping[str, Any]) -> str:
    """The override that makes a dataset read shards from its second epoch on; empty where it does or cannot."""
    return "dataset.cache=shards" if dataset.get("cache") == "none" else ""
