"""The run's account of where its time went, over its epochs: what the verdict, the slow samples and the timeline need.

What the figures mean is timing/verdict.py's affair, how they are recorded record.py's.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Mapping
from typing import Any

import psutil

from feedrate.dataset.cores import usable_cores
from feedrate.loader import Loader
from feedrate.timing import EpochTimes, Load
from feedrate.timing.epoch_times import joined
from feedrate.timing.run_queue import delay_ns, main_task
from feedrate.timing.stages import Slowest
from feedrate.timing.verdict import Setup, Verdict, judge

MOST_STEPS = 50_000  # of the last epochs that are kept: some 7 MB


class Account:
    """Collects the times of a run's epochs.

    The run's first epoch, in which files come from the disk and workers start, is left out as soon as there is another.

    Args:
        loader: of the training partition.
        packable: see timing.verdict.Setup.
    """

    def __init__(self, loader: Any, packable: str = "") -> None:
        self._loader, self._packable = loader, packable if isinstance(loader, Loader) else ""
        self._epochs: deque[EpochTimes] = deque()
        self._cold = True  # whether what is kept is the first epoch
        self._slowest = Slowest()
        self._delays: deque[tuple[int, int]] = deque()  # of workers and main thread in each epoch kept, ns
        self._at = self._spent = (0, 0)
        self._worker_mb: float | None = None

    def begin(self) -> None:
        """The training of an epoch begins."""
        self._at = self._queued()

    def trained(self) -> None:
        """It has ended; validation follows."""
        workers, main = self._queued()
        self._spent = max(0, workers - self._at[0]), max(0, main - self._at[1])

    def end(self, times: EpochTimes) -> None:
        """The epoch has ended, with this account of its training."""
        if self._worker_mb is None:
            self._worker_mb = _own_memory_mb(self._loader)
        if not len(times.wait):
            return
        if self._cold and self._epochs:
            self._cold = False
            self._epochs.clear()
            self._delays.clear()
        self._epochs.append(times)
        self._delays.append(self._spent)
        while len(self._epochs) > 1 and sum(len(kept.wait) for kept in self._epochs) > MOST_STEPS:
            self._epochs.popleft()
            self._delays.popleft()

    def took(self, load: Load | None) -> None:
        """A batch of training was made."""
        if load is not None and load.slow:
            indices, times_ns = zip(*load.slow, strict=True)
            self._slowest.add(indices, times_ns)

    @property
    def times(self) -> EpochTimes | None:
        """The account of what is kept, None before the first epoch."""
        return joined(self._epochs) if self._epochs else None

    def verdict(self) -> Verdict | None:
        """On all epochs so far but the first, or on the first; None before it."""
        times = self.times
        if times is None:
            return None
        loader = self._loader
        workers = int(getattr(loader, "num_workers", 0))
        setup = Setup(
            engine=getattr(loader, "engine", "torch"),
            workers=workers,
            prefetch=getattr(loader, "prefetch_factor", None) or 2,
            batch_size=getattr(loader, "batch_size", None) or 1,
            cores=usable_cores(),
            worker_mb=self._worker_mb or 0.0,
            worker_delay_s=sum(delay for delay, _ in self._delays) / 1e9,
            main_delay_s=sum(delay for _, delay in self._delays) / 1e9,
            packable=self._packable,
        )
        return judge(times, setup)

    def slow_samples(self) -> list[dict[str, Any]]:
        """ID and load_ms of the samples that took longest to load, where samples are timed one by one."""
        names = self._loader.list_IDs if isinstance(self._loader, Loader) else None
        return [
            {"ID": str(index) if names is None else names[index], "load_ms": round(ns / 1e6, 3)}
            for index, ns in self._slowest.longest()
        ]

    def _queued(self) -> tuple[int, int]:
        tasks = self._loader.tasks() if isinstance(self._loader, Loader) else []
        return delay_ns(tasks), delay_ns([main_task()])


def packable(dataset: Mapping[str, Any]) -> str:
    """The override with which a dataset of this configuration reads shards from its second epoch on, or nothing."""
    return "dataset.cache=shards" if dataset.get("cache") == "none" else ""


def _own_memory_mb(loader: Any) -> float:
    """What a worker process of the loader has for itself, on average; 0 where there is none."""
    found = []
    for process in {process for process, _ in loader.tasks()} if isinstance(loader, Loader) else ():
        if process != psutil.Process().pid:
            with contextlib.suppress(psutil.Error):
                found.append(psutil.Process(process).memory_full_info().uss / 1e6)
    return sum(found) / len(found) if found else 0.0
