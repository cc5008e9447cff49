"""Step times and machine load over the epochs of a run: what verdict, slow samples and timeline are computed from."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import psutil

from feedrate.loader import receiving_threads, setup_of
from feedrate.reporting.trace import WINDOW
from feedrate.system.cores import usable_cores
from feedrate.timing import EpochTimes
from feedrate.timing.ceilings import metrics as metrics_of
from feedrate.timing.epoch_times import Setup, cut, joined
from feedrate.timing.machine import FreeCores, Machine
from feedrate.timing.stages import Slowest
from feedrate.timing.verdict import FEW_STEPS, FIGURES, Verdict, judge

MOST_STEPS = 50_000  # that are kept, of the last epochs: some 7 MB


class ThroughputHistory:
    """Collects the times of a run's epochs.

    In the first epoch files come from the disk and workers start: it is left out as soon as there is another one, and
    only its figures are kept.

    Args:
        loader: of the training partition.
        packable: see timing.verdict.Setup.
    """

    def __init__(self, loader: Any, packable: str = "") -> None:
        self._loader, self._packable = loader, packable if loader.seed is not None else ""
        self._epochs: deque[EpochTimes] = deque()
        self._cold = True  # only the first epoch is kept
        self._first: dict[str, float] = {}
        self._open = self._training = False  # within an epoch; within its training
        self._slowest = Slowest()
        self._meanwhile: deque[Machine] = deque()  # the machine's load in each epoch that is kept
        self._before = self._during = Machine()
        self._free_cores = FreeCores()
        self._worker_mb: float | None = None

    def begin(self) -> None:
        """Call at the start of an epoch's training."""
        self._open = self._training = True
        self._before = self._machine()
        self._free_cores.begin(self._workers())

    def step(self) -> None:
        """Call after each step; twice a second it measures how busy other processes keep the cores."""
        if self._free_cores.due:
            self._free_cores.look(self._workers())

    def trained(self) -> None:
        """Call at the end of an epoch's training, before its validation."""
        self._training = False
        self._during = self._machine() - self._before
        workers = self._workers()
        if workers or not self._loader.num_workers:
            self._free_cores.end(workers)
        else:
            self._free_cores.discard()

    def end(self, times: EpochTimes) -> None:
        """Call at the end of an epoch, with the times of its training."""
        self._open = False
        if self._worker_mb is None:
            self._worker_mb = _own_memory_mb(self._loader)
        if not len(times.wait):
            return
        if self._cold and self._epochs:
            self._cold, self._first = False, self._figures_of_first()
            self._epochs.clear()
            self._meanwhile.clear()
            self._free_cores = FreeCores()
        self._epochs.append(times)
        self._meanwhile.append(self._during)
        while len(self._epochs) > 1 and sum(len(kept.wait) for kept in self._epochs) > MOST_STEPS:
            self._epochs.popleft()
            self._meanwhile.popleft()

    def broken_off(self, times: EpochTimes) -> None:
        """Call at the end of the run; `times` are those of an epoch that was broken off, if any.

        An epoch of a few steps counts only where there is no other.
        """
        if not self._open:
            return
        self._open = False
        if self._training:
            self.trained()
        if not self._epochs or times.steady.sum() >= FEW_STEPS:
            self.end(times)

    def _figures_of_first(self) -> dict[str, float]:
        times, (machine,) = self._epochs[0], self._meanwhile
        if not times.enough:
            return {}
        metrics = metrics_of(times, self.setup(times))
        names = ("samples_per_s", "wait_pct")
        return {**{name: metrics[FIGURES[name]] for name in names}, "read_mb": machine.read_mb}

    def took_long(self, samples: Sequence[tuple[int, int]]) -> None:
        """Notes slow samples, (index, ns) each."""
        indices, times_ns = zip(*samples, strict=True)
        self._slowest.add(indices, times_ns)

    @property
    def times(self) -> EpochTimes | None:
        """Times of all kept epochs, None before the first one."""
        return joined(self._epochs) if self._epochs else None

    def verdict(self) -> Verdict | None:
        """The verdict on all epochs but the first, or on the first alone; None after too few steps."""
        times = self.times
        if times is None or not times.enough:
            return None
        return judge(times, self.setup(times), self._first)

    def setup(self, times: EpochTimes | None = None) -> Setup:
        """Loader and machine during the kept epochs; free cores only where `times` are given."""
        machine, found = sum(self._meanwhile, Machine()), setup_of(self._loader)
        free = None
        # what torch's workers computed is unknown
        if times is not None and machine.seconds and (times.known or not found.workers):
            own_ns = times.cpu.sum() + (times.load_cpu.sum() if found.traits.has_processes else 0)
            free = min(found.cores, float(own_ns / max(1, times.elapsed.sum())) + machine.idle_s / machine.seconds)
        return replace(
            found,
            cores=found.cores if free is None else max(1.0, free),
            usable_cores=usable_cores(),
            free_cores=free,
            free_range=None if free is None else self._free_cores.range(),
            worker_mb=self._worker_mb or 0.0,
            worker_delay_s=machine.workers_queued_s,
            receive_cpu_ns=1e9 * machine.helpers_s / max(1, sum(len(kept.wait) for kept in self._epochs)),
            packable=self._packable,
        )

    def window(self) -> EpochTimes | None:
        """Consecutive steps from the middle of the last epoch, for the timeline."""
        if not self._epochs:
            return None
        last = self._epochs[-1]
        begin = max(0, (len(last.wait) - WINDOW) // 2)
        return cut(last, slice(begin, begin + WINDOW))

    def slow_samples(self) -> list[dict[str, Any]]:
        """ID and load_ms of the samples that took longest to load, where samples are timed one by one."""
        names = self._loader.list_IDs
        return [
            {"ID": str(index) if names is None else names[index], "load_ms": round(ns / 1e6, 3)}
            for index, ns in self._slowest.longest()
        ]

    def _machine(self) -> Machine:
        return Machine.now(self._workers(), receiving_threads())

    def _workers(self) -> list[tuple[int, int]]:
        return self._loader.tasks()  # type: ignore[no-any-return]


def packable(dataset: Mapping[str, Any]) -> str:
    """The override that makes a dataset read shards from its second epoch on; empty where it does or cannot."""
    return "dataset.cache=shards" if dataset.get("cache") == "none" else ""


def _own_memory_mb(loader: Any) -> float:
    """Mean unshared memory of the loader's worker processes; 0 where there are none."""
    found = []
    for process in {process for process, _ in loader.tasks()}:
        if process != psutil.Process().pid:
            with contextlib.suppress(psutil.Error):
                found.append(psutil.Process(process).memory_full_info().uss / 1e6)
    return sum(found) / len(found) if found else 0.0
