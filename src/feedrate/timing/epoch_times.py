"""The account of one epoch's steps: what each took, and the rates that follow.

Who measures it is clock.py; what it means for the user is verdict.py's affair.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from struct import Struct
from typing import Any

import numpy as np

from feedrate.timing.engine_traits import EngineTraits
from feedrate.timing.stages import MAIN_THREAD, STAGES, Load

MOST_AHEAD = 64  # batches that are looked at to count those that were ready
MIN_QUIET, MIN_QUIET_SHARE = 10, 0.05  # steps without loading at their side that tell how long a step is
MIN_HELD = 3  # where they come about at instants that the loader picks, as its threads' gate does
APART = 0.25  # other batches at whose side, on average, one counts as made alone
USUAL = 95  # percentile of the steps' lengths beyond which one counts as no longer, or single steps would decide
PARTS = ("wait", "transfer", "compute")  # of a step
_INSTANTS = ("asked", "got", "moved", "done")  # between which they lie
_COLUMNS = (*_INSTANTS, "samples", "bytes", "begin", "end", "load_cpu", "worker")  # and the stages but fetch
_ROW = Struct(f"={len(_COLUMNS) + len(STAGES) - 1}q")
_PLAIN = Struct(f"={len(_COLUMNS)}q{8 * (len(STAGES) - 1)}x")  # the same where no stage is marked: what follows is 0
_UNKNOWN: tuple[int, ...] = Load(0, 0, 0, MAIN_THREAD)
RECEIVE_S = 4e-4  # what it takes to take over a batch from a process, computing as well, where it was not seen
LEAST_SHIFT = 0.05  # of a core: smaller changes are not told apart from those of the system's counting
SHIFTING = 0.1  # of the free cores: a larger change during a run leaves nothing to promise
MIN_STEPS = 10  # counted steps below which there is neither a rate nor a verdict
AT_ONCE = 128  # steps whose rows are written together: what runs once, between two batches, is five times as slow


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What was measured with, and what could be had instead.

    Attributes:
        engine: its name, for display.
        traits: of the engine.
        workers, prefetch, batch_size: as configured.
        cores: that the run can use: the free ones, and one at least, since others leave it a share.
        usable_cores: that it may use at all, whoever else computes on them; 0 where that is not asked.
        free_cores: on average, those that the run computed on and those that were idle meanwhile; None where that is
            not known.
        free_range: (low, high), 10th and 90th percentile of the free cores through the run; None likewise.
        worker_mb: memory that each worker has for itself, 0 where unknown.
        worker_delay_s: seconds for which the workers, all together, stood in the queue for a core in the measured time.
        receive_cpu_ns: what threads beside the training compute, on average, to take over a batch from a process; 0
            where they end with each epoch.
        threadable: whether workers may be threads, where there are none so far.
        packable: the override that lets later epochs read shards, empty where there is none.
    """

    engine: str
    traits: EngineTraits
    workers: int
    prefetch: int
    batch_size: int
    cores: float
    usable_cores: int = 0
    free_cores: float | None = None
    free_range: tuple[float, float] | None = None
    worker_mb: float = 0.0
    worker_delay_s: float = 0.0
    receive_cpu_ns: float = 0.0
    threadable: bool = False
    packable: str = ""

    @property
    def shifting(self) -> bool:
        """Whether what others took of the cores changed by more than a tenth of what was free."""
        if self.free_range is None or self.free_cores is None:
            return False
        low, high = self.free_range
        return high - low > max(SHIFTING * self.free_cores, LEAST_SHIFT)

    @property
    def crowded(self) -> bool:
        """Whether others left the run less than one core."""
        return self.free_cores is not None and self.free_cores < 1.0

    @property
    def threads(self) -> bool:
        """Whether the workers share the interpreter with the training."""
        return self.traits.shares_interpreter and self.traits.prefetches


class Steps:
    """Rows of an account that is being written.

    Args:
        warmup: steps that do not count; neither does the first of a size, for which memory is allocated, and which
            torch.compile compiles anew.
        sizes: that are none of these any more.

    Attributes:
        fresh: rows that were written last, each a tuple of asked, got, moved, done, samples, bytes, made: the instants
            at which the batch was asked for, was there, was on the device, and its step was over; the values of its
            Load, None where nobody says. Whoever writes appends to it, which costs least, and every AT_ONCE of them
            settles.
    """

    def __init__(self, warmup: int = 0, sizes: Iterable[int] = ()) -> None:
        self.fresh: list[tuple[int, int, int, int, int, int, tuple[int, ...] | None]] = []
        self._rows = bytearray()
        self._added = 0  # steps that are part of the sum
        self._spent: tuple[int, ...] = (0, 0, 0)
        self._warmup, self._sizes = warmup, frozenset(sizes)

    def __len__(self) -> int:
        return len(self._rows) // _ROW.size + len(self.fresh)

    def settle(self) -> None:
        """Writes what is fresh where it takes the least memory."""
        # hundreds of times less often than a step, but with nothing in the caches
        self._rows += b"".join(
            [
                _PLAIN.pack(asked, got, moved, done, samples, nbytes, *made)
                if made is not None and len(made) == 4
                else _ROW.pack(asked, got, moved, done, samples, nbytes, *Load(*(made or _UNKNOWN)))
                for asked, got, moved, done, samples, nbytes, made in self.fresh
            ]
        )
        self.fresh.clear()

    def spent(self) -> tuple[int, ...]:
        """Of all steps together: wait, transfer and compute, nanoseconds."""
        columns = self.columns(len(self) - self._added)
        self._spent = tuple(before + int(columns[part].sum()) for before, part in zip(self._spent, PARTS, strict=True))
        self._added = len(self)
        return self._spent

    def columns(self, last: int) -> dict[str, np.ndarray]:
        """Of the last steps, at most so many, by the names that EpochTimes has for them, each (steps,) int64."""
        return _columns(self._last(last))

    def _last(self, steps: int) -> np.ndarray:
        self.settle()
        return _table(self._rows[max(0, len(self) - steps) * _ROW.size :])  # a copy: what is looked at could not grow

    def times(
        self, cpu: Sequence[tuple[int, int]] = (), evaluation_s: float = 0.0, checkpoint_s: float = 0.0
    ) -> EpochTimes:
        """The account so far.

        Args:
            cpu: (steps, ns): what this process had computed by the end of that many of them; the last for all.
        """
        table = self._last(len(self))
        columns = _columns(table)
        elapsed = columns["wait"] + columns["transfer"] + columns["compute"]
        marked, load = table[:, len(_COLUMNS) :], columns["end"] - columns["begin"]
        return EpochTimes(
            **columns,
            elapsed=elapsed,
            cpu=_shared_out(cpu, elapsed),
            stages=np.column_stack([load - marked.sum(axis=1), marked]),
            steady=self._steady(columns["samples"]),
            evaluation_s=evaluation_s,
            checkpoint_s=checkpoint_s,
        )

    def _steady(self, samples: np.ndarray) -> np.ndarray:
        sizes, first = np.unique(samples, return_index=True)
        steady = np.arange(len(samples)) >= self._warmup
        steady[first[~np.isin(sizes, list(self._sizes))]] = False
        return steady


def _table(packed: bytes | bytearray) -> np.ndarray:
    return np.frombuffer(packed, dtype=np.int64).reshape(-1, len(_COLUMNS) + len(STAGES) - 1)


def _columns(table: np.ndarray) -> dict[str, np.ndarray]:
    kept = {name: table[:, at].copy() for at, name in enumerate(_COLUMNS) if name not in _INSTANTS[1:]}
    return kept | {name: table[:, at + 1] - table[:, at] for at, name in enumerate(PARTS)}


@dataclass(frozen=True)
class EpochTimes:
    """Times of one epoch's steps; each (steps,) int64, nanoseconds unless said.

    Attributes:
        asked: instant at which the loop asked for the batch.
        wait: the loop stood still for the next batch; on an accelerator the smaller of that and the device's gap.
        transfer: moving the batch to the device, as far as the host took part; on an accelerator the rest of its gap.
        compute: the step; on an accelerator by the device's own events.
        elapsed: the whole step, by the host's clock or the accelerator's.
        cpu: float64, what this process computed meanwhile, in all its threads; it is asked for many steps at once, of
            which each counts by its length.
        begin, end: instants between which the batch was made, in its worker; both 0 where unknown.
        load_cpu: what the worker computed for it.
        worker: its number, -1 for the main thread.
        stages: (steps, stages), what of its making belongs to each of STAGES.
        samples: samples of the step.
        bytes: bytes of its batch.
        steady: (steps,) bool, whether the step counts: warm-up steps and the first of each size do not.
        evaluation_s, checkpoint_s: seconds, outside of every rate.
    """

    asked: np.ndarray
    wait: np.ndarray
    transfer: np.ndarray
    compute: np.ndarray
    elapsed: np.ndarray
    cpu: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    load_cpu: np.ndarray
    worker: np.ndarray
    stages: np.ndarray
    samples: np.ndarray
    bytes: np.ndarray
    steady: np.ndarray
    evaluation_s: float
    checkpoint_s: float

    @property
    def counted(self) -> np.ndarray:
        """(steps,) bool: the steady steps, all where none is."""
        return self.steady if self.steady.any() else np.ones_like(self.steady)

    @property
    def enough(self) -> bool:
        """Whether there are as many steady steps as a rate or a verdict needs."""
        return int(self.steady.sum()) >= MIN_STEPS

    @property
    def load(self) -> np.ndarray:
        """What making the batch took in its worker, 0 where unknown."""
        load: np.ndarray = self.end - self.begin
        return load

    @property
    def known(self) -> bool:
        """Whether the loader says who made a batch, and when."""
        return bool(self.end.any())

    @cached_property
    def starved(self) -> np.ndarray:
        """The part of the wait in which the batch was not made yet; the rest is its hand-over."""
        starved: np.ndarray = np.clip(self.end - self.asked, 0, self.wait)
        return starved

    @cached_property
    def ready(self) -> np.ndarray:
        """Batches that were made when the loop asked for the next one, that one included, at most MOST_AHEAD."""
        ready, steps = np.zeros_like(self.asked), len(self.asked)
        for ahead in range(min(MOST_AHEAD, steps)):
            made = (self.end[ahead:] <= self.asked[: steps - ahead]) & (self.end[ahead:] > 0)
            if not made.any():
                break
            ready[: steps - ahead] += made
        return ready

    def mean_wait_ms(self) -> float:
        """What a steady step waited for its batch on average; goes with `loader/wait_pct`."""
        return float(self.wait[self.counted].mean() / 1e6) if self.counted.size else 0.0

    @cached_property
    def work(self) -> np.ndarray:
        """The step without its wait, by the host's clock."""
        work: np.ndarray = self.elapsed - self.wait
        return work

    @cached_property
    def quiet(self) -> np.ndarray:
        """(steps,) bool: no batch was being made while the step ran."""
        made = self.end > 0
        if not made.any():
            return np.zeros_like(made)
        start = self.asked + self.wait
        begun = np.searchsorted(np.sort(self.begin[made]), start + self.work)
        ended = np.searchsorted(np.sort(self.end[made]), start, side="right")
        # of the batches that were begun after the last one here nothing is known
        quiet: np.ndarray = (begun <= ended) & (start + self.work <= self.begin.max())
        return quiet

    def work_alone_ns(self, threads: bool) -> float:
        """What a steady step takes, without its wait, where the loader does not get in its way.

        Known from steps during which no batch was made; what all steps take on average where there are too few. As
        steps differ in length anyway, what counts is the longest time that these few still speak for; and threads hold
        a step up for no longer than they compute.
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
        """By how much one batch in the making slows another down: 0 not at all, 1 as if only one were made at a time.

        Known where some were made alone and some were not; 0 otherwise.
        """
        made = self.end > 0
        begin, end = self.begin[made], self.end[made]
        took, company = (end - begin).astype(float), _company(begin, end)
        lone, crowded = company < APART, company > 1 - APART
        if lone.sum() < MIN_HELD or crowded.sum() < MIN_HELD:
            return 0.0
        slower = took[crowded] / np.median(took[lone]) - 1
        return float(np.clip(np.median(slower / company[crowded]), 0.0, 1.0))

    @cached_property
    def load_alone(self) -> np.ndarray:
        """(steps,) float64: what making the batch would have taken with no other one in the making."""
        alone: np.ndarray = self.load / (1 + self.in_the_way * _company(self.begin, self.end))
        return alone

    def load_together_ns(self, threads: bool, workers: int) -> float:
        """What making a steady batch takes where all workers are busy."""
        if not threads or workers < 2:
            return float(self.load[self.counted].mean())
        return float(self.load_alone[self.counted].mean()) * (1 + self.in_the_way * (workers - 1))

    def pause_ns(self, ahead: int) -> float:
        """What a worker process takes from the end of a batch to the beginning of its next, if it knew of that by then.

        The middle one; 0 where there are too few.

        Args:
            ahead: batches that are ordered at a time: one is when that many before it was handed out, at the latest.
        """
        ordered = np.zeros_like(self.asked)
        ordered[ahead:] = (self.asked + self.wait)[: max(0, len(ordered) - ahead)]
        pauses: list[np.ndarray] = []
        for worker in np.unique(self.worker[self.end > 0]):
            (rows,) = np.nonzero((self.worker == worker) & (self.end > 0))
            begin, end = self.begin[rows[1:]], self.end[rows[:-1]]
            known = (ordered[rows[1:]] <= end) & (rows[1:] >= ahead)
            pauses.append(np.maximum(0, begin - end)[known])
        found = np.concatenate(pauses) if pauses else np.zeros(0)
        return float(np.median(found)) if len(found) >= MIN_QUIET else 0.0

    def receive_ns(self) -> float:
        """What it takes the main process to take over a batch that is there; the middle one of the steady steps.

        It counts as there once the one after it is made, too; before that it may be on its way from its worker.
        Where hardly any was, the shortest that was seen, way and all, but no more than RECEIVE_S from a worker.
        """
        handed = (self.wait - self.starved)[self.counted]
        there = self.ready[self.counted] > 1
        if there.sum() >= MIN_HELD:
            return float(np.median(handed[there]))
        if not handed.size:
            return 0.0
        by_workers = self.known and int(self.worker[self.counted].max()) > MAIN_THREAD
        return min(float(handed.min()), 1e9 * RECEIVE_S) if by_workers else float(handed.min())

    def way_ns(self) -> float:
        """How long a batch is on its way from its worker, once it is made, until it can be taken over; the middle one
        of those that were waited for, 0 where hardly any was. Others are made meanwhile.
        """
        late = self.counted & (self.ready <= 1) & (self.wait > 1e9 * RECEIVE_S)
        if late.sum() < MIN_HELD:
            return 0.0
        return max(0.0, float(np.median((self.asked + self.wait - self.end)[late])) - self.receive_ns())


def _shared_out(cpu: Sequence[tuple[int, int]], elapsed: np.ndarray) -> np.ndarray:
    """(steps,) float64: each step's share of what was computed in the steps that it was asked for with."""
    shares = np.zeros(len(elapsed))
    begin = before = 0
    for end, ns in cpu:
        if end > begin:
            part = slice(begin, end)
            shares[part] = elapsed[part] * ((ns - before) / max(1, elapsed[part].sum()))
            begin, before = end, ns
    return shares


def _company(begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """How many other batches were in the making while each was, on average."""
    instants = np.concatenate([begin, end])
    order = np.argsort(instants, kind="stable")
    at = instants[order]
    active = np.cumsum(np.where(order < len(begin), 1, -1))
    together = np.concatenate([[0], np.cumsum(active[:-1] * np.diff(at))])
    company: np.ndarray = (np.interp(end, at, together) - np.interp(begin, at, together)) / np.maximum(1, end - begin)
    return company - 1


def joined(parts: Iterable[EpochTimes]) -> EpochTimes:
    """The account of several epochs, of which there must be one, as if they were one."""
    parts = list(parts)
    if len(parts) == 1:
        return parts[0]
    columns: dict[str, Any] = {}
    for each in fields(EpochTimes):
        values = [getattr(part, each.name) for part in parts]
        columns[each.name] = sum(values) if each.name.endswith("_s") else np.concatenate(values)
    return EpochTimes(**columns)


def cut(times: EpochTimes, steps: slice) -> EpochTimes:
    """The account of some of the steps."""
    columns: dict[str, Any] = {each.name: getattr(times, each.name) for each in fields(EpochTimes)}
    arrays = {name: value[steps] for name, value in columns.items() if isinstance(value, np.ndarray)}
    return EpochTimes(**{**columns, **arrays})
