"""The step log of an epoch, and what follows from it: time per step, per load and per worker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from feedrate.timing.engine_traits import EngineTraits
from feedrate.timing.stages import MAIN_THREAD, STAGES

MOST_AHEAD = 64  # most prefetched batches that `ready` counts
MIN_QUIET, MIN_QUIET_SHARE = 10, 0.05  # least number and share of steps without loading beside them
MIN_HELD = 3  # the same for threads, whose loader makes such steps on purpose
APART = 0.25  # mean number of other batches being loaded, below which a batch counts as loaded alone
USUAL = 95  # percentile of step lengths at which longer steps are cut off
LAPS = ("wait", "transfer", "compute")  # of a step
PARTS = ("forward", "backward", "optimizer")  # of compute; the rest is metrics
_COLUMNS = ("requested", *LAPS, *PARTS, "samples", "bytes", "begin", "end", "load_cpu", "worker", *STAGES[1:])
_UNKNOWN, _ZEROS = (0, 0, 0, MAIN_THREAD), (0,) * (4 + len(STAGES) - 1)  # values of a Load
_NOTHING: Mapping[Any, int] = {}
RECEIVE_S = 4e-4  # wall and CPU time to receive a batch from a process, where that was not measured
LEAST_SHIFT = 0.05  # cores: least change of the free cores that can be measured
SHIFTING = 0.1  # change of the free cores during a run, as a share, above which no gain is promised
MIN_STEPS = 10  # steady steps below which there is neither a rate nor a verdict
AT_ONCE = 128  # steps packed together: code that runs once between two batches is five times as slow


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a run was measured with."""

    engine: str  # for display
    traits: EngineTraits
    workers: int
    prefetch: int
    cores: float  # free ones that the run can use, at least one
    usable_cores: int = 0  # by affinity and quota; 0 if unknown
    free_cores: float | None = None  # mean number that the run used or that were idle; None if unknown
    free_range: tuple[float, float] | None = None  # their 10th and 90th percentile
    worker_delay_s: float = 0.0  # time in which workers were ready to run but had no core, summed
    threadable: bool = False  # whether the dataset allows threads; known where there are no workers
    packable: str = ""  # the override that makes later epochs read shards, if there is one

    @property
    def shifting(self) -> bool:
        """Whether the free cores changed by more than a tenth during the run."""
        if self.free_range is None or self.free_cores is None:
            return False
        low, high = self.free_range
        return high - low > max(SHIFTING * self.free_cores, LEAST_SHIFT)

    @property
    def crowded(self) -> bool:
        """Whether other programs left less than one core."""
        return self.free_cores is not None and self.free_cores < 1.0

    @property
    def threads(self) -> bool:
        """Whether the workers are threads."""
        return self.traits.shares_interpreter and self.traits.prefetches


class Steps:
    """The step log of an epoch that is running.

    Args:
        warmup: steps that are not steady; nor is the first of each batch size, for which memory is allocated and
            torch.compile compiles.
        seen_sizes: batch sizes of earlier epochs.
    """

    def __init__(self, warmup: int = 0, seen_sizes: Iterable[int] = ()) -> None:
        self._fresh: list[tuple[Any, ...]] = []
        self._table = np.empty((AT_ONCE, len(_COLUMNS)), dtype=np.int64)
        self._packed = 0  # rows of the table in use
        self._warmup, self._seen_sizes = warmup, list(seen_sizes)

    def __len__(self) -> int:
        return self._packed + len(self._fresh)

    def add(
        self,
        requested: int,
        received: int,
        on_device: int,
        done: int,
        samples: int,
        nbytes: int,
        timing: tuple[int, ...] | None = None,
        ends: Mapping[str, int] = _NOTHING,
    ) -> None:
        """Adds a step, by the instants at which the batch was requested, received and on the device, and the step done.

        Args:
            timing: values of its Load, if known.
            ends: instants at which the step's PARTS ended; those that are missing took no time.
        """
        self._fresh.append((requested, received, on_device, done, samples, nbytes, timing, ends))
        if len(self._fresh) == AT_ONCE:
            self._pack()

    def _pack(self) -> None:
        rows = []
        for requested, received, on_device, done, samples, nbytes, timing, ends in self._fresh:
            forward = ends.get("forward", on_device)
            backward = ends.get("backward", forward)
            laps = received - requested, on_device - received, done - on_device
            parts = forward - on_device, backward - forward, ends.get("optimizer", backward) - backward
            load = timing or _UNKNOWN
            rows.append((requested, *laps, *parts, samples, nbytes, *load, *_ZEROS[len(load) :]))
        if not rows:
            return
        begin, self._packed = self._packed, self._packed + len(rows)
        if self._packed > len(self._table):
            self._table = np.resize(self._table, (2 * self._packed, len(_COLUMNS)))
        self._table[begin : self._packed] = rows
        self._fresh.clear()

    def columns(self, last: int) -> dict[str, np.ndarray]:
        """Columns of the last steps by their names in EpochTimes, (steps,) int64 each."""
        self._pack()
        rows = self._table[max(0, self._packed - last) : self._packed]
        return dict(zip(_COLUMNS, rows.T.copy(), strict=True))

    def times(self, cpu: Mapping[int, int] = _NOTHING) -> EpochTimes:
        """The times so far.

        Args:
            cpu: CPU time of this process by the end of that many steps, ns.
        """
        found = self.columns(len(self))
        marked = np.column_stack([found.pop(name) for name in STAGES[1:]])
        parts = np.column_stack([found.pop(name) for name in PARTS])
        sizes, first = np.unique(found["samples"], return_index=True)
        steady = np.arange(len(marked)) >= self._warmup
        steady[first[~np.isin(sizes, self._seen_sizes)]] = False
        fetched = found["end"] - found["begin"] - marked.sum(axis=1)
        ends = np.concatenate([[0], np.cumsum(found["wait"] + found["transfer"] + found["compute"])])
        return EpochTimes(
            **found,
            cpu=np.diff(np.interp(ends, ends[[0, *cpu]], [0, *cpu.values()])),
            parts=parts,
            stages=np.column_stack([fetched, marked]),
            steady=steady,
        )


@dataclass(frozen=True, kw_only=True)
class EpochTimes:
    """Times of an epoch's steps; each array is (steps,) int64 nanoseconds unless stated."""

    requested: np.ndarray  # instant at which the loop requested the batch
    wait: np.ndarray  # time the loop waited for it; on an accelerator at most the device's idle gap
    transfer: np.ndarray  # host time to move it to the device; on an accelerator the rest of the gap
    compute: np.ndarray  # the step; on an accelerator by device events
    parts: np.ndarray  # (steps, PARTS), parts of the step; all 0 if unknown
    cpu: np.ndarray  # float64, CPU time of this process, all threads; measured over many steps, shared by their length
    begin: np.ndarray  # start of its loading; 0 if unknown
    end: np.ndarray
    load_cpu: np.ndarray  # CPU time of its loading
    worker: np.ndarray  # number of the worker, -1 for the main thread
    stages: np.ndarray  # (steps, STAGES), loading time
    samples: np.ndarray
    bytes: np.ndarray
    steady: np.ndarray  # bool, False for warm-up and for the first step of each batch size

    @cached_property
    def elapsed(self) -> np.ndarray:
        """The whole step."""
        return np.asarray(self.wait + self.transfer + self.compute)

    @property
    def counted(self) -> np.ndarray:
        """(steps,) bool: the steady steps, or all if there are none."""
        return self.steady if self.steady.any() else np.ones_like(self.steady)

    @property
    def enough(self) -> bool:
        """Whether there are enough steady steps for a rate or a verdict."""
        return int(self.steady.sum()) >= MIN_STEPS

    @property
    def load(self) -> np.ndarray:
        """Loading time in the worker, 0 if unknown."""
        return np.asarray(self.end - self.begin)

    @property
    def known(self) -> bool:
        """Whether the loader reports when and where batches were loaded."""
        return bool(self.end.any())

    @cached_property
    def starved(self) -> np.ndarray:
        """The part of the wait in which the batch was still being loaded; the rest is hand-over."""
        return np.asarray(np.clip(self.end - self.requested, 0, self.wait))

    @cached_property
    def ready(self) -> np.ndarray:
        """Batches that were loaded when the loop requested the next one, including that one, at most MOST_AHEAD."""
        ready, steps = np.zeros_like(self.requested), len(self.requested)
        for ahead in range(min(MOST_AHEAD, steps)):
            loaded = (self.end[ahead:] <= self.requested[: steps - ahead]) & (self.end[ahead:] > 0)
            if not loaded.any():
                break
            ready[: steps - ahead] += loaded
        return ready

    @cached_property
    def work(self) -> np.ndarray:
        """The step without its wait."""
        return np.asarray(self.transfer + self.compute)

    @cached_property
    def quiet(self) -> np.ndarray:
        """(steps,) bool: no batch was being loaded during the step."""
        known = self.end > 0
        start = self.requested + self.wait
        begun = np.searchsorted(np.sort(self.begin[known]), start + self.work)
        ended = np.searchsorted(np.sort(self.end[known]), start, side="right")
        # loads that began after the last one in the log are unknown
        return np.asarray((begun <= ended) & (start + self.work <= self.begin.max(initial=0)))

    def work_alone_ns(self, threads: bool) -> float:
        """Mean length of a steady step, without its wait, where no loading slows it down.

        Estimated from the quiet steps: the upper end of their confidence interval, since steps vary anyway. The mean
        of all steps where too few are quiet. Threads delay a step by at most their CPU time.
        """
        work, quiet = self.work[self.counted], self.quiet[self.counted]
        mean, count = float(work.mean()), int(quiet.sum())
        if count < (MIN_HELD if threads else max(MIN_QUIET, MIN_QUIET_SHARE * len(work))):
            return mean
        usual = np.minimum(work, np.percentile(work, USUAL))
        few = usual[quiet]
        longest = few.mean() + few.std(ddof=1) / count**0.5 * (1.65 + 2.5 / (count - 1))  # Student's t, 95 %, nearly
        alone = mean * min(1.0, float(longest / usual.mean()))
        return max(alone, mean - float(self.load_cpu[self.counted].mean())) if threads else alone

    @cached_property
    def in_the_way(self) -> float:
        """By how much loading a batch slows down loading another one: 0 not at all, 1 as if they took turns.

        0 if too few batches were loaded alone or too few together.
        """
        known = self.end > 0
        begin, end = self.begin[known], self.end[known]
        took, others = (end - begin).astype(float), _others(begin, end)
        lone, crowded = others < APART, others > 1 - APART
        if lone.sum() < MIN_HELD or crowded.sum() < MIN_HELD:
            return 0.0
        slower = took[crowded] / np.median(took[lone]) - 1
        return float(np.clip(np.median(slower / others[crowded]), 0.0, 1.0))

    @cached_property
    def load_alone(self) -> np.ndarray:
        """(steps,) float64: loading time if no other batch were being loaded."""
        return np.asarray(self.load / (1 + self.in_the_way * _others(self.begin, self.end)))

    def load_together_ns(self, threads: bool, workers: int) -> float:
        """Mean loading time of a steady batch where all workers are busy."""
        if not threads or workers < 2:
            return float(self.load[self.counted].mean())
        return float(self.load_alone[self.counted].mean()) * (1 + self.in_the_way * (workers - 1))

    def pause_ns(self, ahead: int) -> float:
        """Median idle gap between two batches in one worker when the next request was already queued; 0 if too few.

        Args:
            ahead: requests in flight: batch i is requested once batch i - ahead was delivered.
        """
        rows = np.argsort(self.worker, kind="stable")  # the batches of each worker, in their order
        last, following = rows[:-1], rows[1:]
        one_worker = (self.worker[last] == self.worker[following]) & (self.end[last] > 0) & (self.end[following] > 0)
        queued = np.zeros_like(self.requested)  # when the batch was requested
        queued[ahead:] = (self.requested + self.wait)[: max(0, len(queued) - ahead)]
        known = one_worker & (following >= ahead) & (queued[following] <= self.end[last])
        found = np.maximum(0, self.begin[following] - self.end[last])[known]
        return float(np.median(found)) if len(found) >= MIN_QUIET else 0.0

    def receive_ns(self) -> float:
        """Median time of the main process to receive a loaded batch.

        Measured where the following batch was loaded, too: until then it may be in flight. Otherwise the shortest
        hand-over, from a worker at most RECEIVE_S.
        """
        received = (self.wait - self.starved)[self.counted]
        there = self.ready[self.counted] > 1
        if there.sum() >= MIN_HELD:
            return float(np.median(received[there]))
        from_workers = self.known and (self.worker[self.counted] > MAIN_THREAD).any()
        return min(float(received.min()), 1e9 * RECEIVE_S) if from_workers else float(received.min())


def _others(begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Mean number of other batches that were being loaded while each was."""
    instants = np.concatenate([begin, end])
    order = np.argsort(instants, kind="stable")
    at = instants[order]
    active = np.cumsum(np.where(order < len(begin), 1, -1))
    together = np.concatenate([[0], np.cumsum(active[:-1] * np.diff(at))])
    others: np.ndarray = (np.interp(end, at, together) - np.interp(begin, at, together)) / np.maximum(1, end - begin)
    return others - 1


def joined(epochs: Iterable[EpochTimes]) -> EpochTimes:
    """Several epochs, at least one, as one."""
    epochs = list(epochs)
    return EpochTimes(**{each.name: np.concatenate([getattr(one, each.name) for one in epochs]) for each in _FIELDS})


def cut(times: EpochTimes, steps: slice) -> EpochTimes:
    """Some of the steps."""
    return EpochTimes(**{each.name: getattr(times, each.name)[steps] for each in _FIELDS})


_FIELDS = fields(EpochTimes)
