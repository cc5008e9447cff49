"""Times a training loop: wait, transfer, compute, evaluation, checkpoint.

A phase is named when it ends: it gets the time since the last mark, so every nanosecond is counted once.
"""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch

from feedrate.timing.ahead import HostAhead, record
from feedrate.timing.epoch_times import AT_ONCE, LAPS, MIN_STEPS, PARTS, EpochTimes, Steps
from feedrate.timing.machine import seconds_since_start
from feedrate.timing.stages import clock_ns

ASIDE = ("evaluation", "checkpoint")  # outside of the steps
_SPANS = ("gap", "compute", *PARTS)  # measured on a device
_T = TypeVar("_T")


class Clock:
    """The clock of a run.

    Call `begin()` when an epoch starts; in each step `lap("wait")`, `lap("transfer")` if the batch is moved,
    `timed(...)` for its parts, and `step(...)`; then `lap("evaluation")`, `lap("checkpoint")`, and `epoch()` for the
    times.

    Args:
        device: on an accelerator, `step` waits for the end of the step before the last, and device events time the
            steps and their parts.
        warmup_steps: first steps of the run that are not steady; nor is the first of each batch size.

    Attributes:
        first_batch_s: wait for the run's first batch, seconds; None before it.
        first_batch_after_start_s: from the start of the process to the first batch, seconds.
    """

    def __init__(self, device: torch.device, warmup_steps: int) -> None:
        self._events = _DeviceEvents(device) if device.type != "cpu" else None
        self._warmup = max(1, warmup_steps)
        self._count = 0  # steps of the run
        self._seen_sizes: set[int] = set()
        self._steps = Steps()
        self.first_batch_s: float | None = None
        self.first_batch_after_start_s: float | None = None
        self._totals = dict.fromkeys((*LAPS, *ASIDE), 0)
        self.begin()

    def begin(self) -> None:
        """Starts an epoch."""
        self._seen_sizes.update(self._steps.columns(len(self._steps))["samples"].tolist())
        self._steps = Steps(self._warmup - self._count, self._seen_sizes)
        self._cpu, self._cpu_since = 0, time.process_time_ns()  # type: int, int | None
        self._cpu_log: dict[int, int] = {}  # CPU time by the end of so many steps
        self._ends: dict[str, int] = {}  # when the step's parts ended
        self._requested = self._received = self._mark = clock_ns()
        if self._events:
            self._events.begin()

    def lap(self, phase: str) -> None:
        """Ends a phase: wait, transfer, evaluation or checkpoint."""
        now = clock_ns()
        self._totals[phase] += now - self._mark
        if phase == "wait":
            self._requested, self._received = self._mark, now
        elif phase in ASIDE:
            if self._events is not None:
                self._events.pause()
            self._cpu_since = time.process_time_ns()
        self._mark = now
        if phase == "transfer" and self._events is not None:
            self._events.step_begins()

    def timed(self, part: str, call: Callable[..., _T], *args: Any) -> _T:
        """Returns `call(*args)`, timed as a part of the step: forward, backward or optimizer, in this order."""
        result = call(*args)
        self._ends[part] = clock_ns()
        if self._events is not None:
            self._events.part_ends(part)
        return result

    def skip(self) -> None:
        """Leaves the time since the last mark out of all phases. To be called right after the last step of an epoch.

        CPU time is not counted again until the next `lap` of evaluation or checkpoint, or `begin`.
        """
        self._cpu, self._cpu_since = self._cpu_ns(), None
        if self._events is not None:
            self._events.pause()
        self._mark = clock_ns()

    def step(self, samples: int, nbytes: int, timing: tuple[int, ...] | None = None) -> None:
        """Ends a step; the time since the last mark was compute.

        Args:
            timing: values of the batch's Load, if the loader reports them.
        """
        if self._events is not None:
            self._events.step_ends()
        now = clock_ns()
        # only instants are kept here: code that runs once between two batches finds cold caches
        self._steps.add(self._requested, self._received, self._mark, now, samples, nbytes, timing, self._ends)
        self._totals["compute"] += now - self._mark
        self._mark, self._ends = now, {}
        if self.first_batch_s is None:
            self.first_batch_s = (self._received - self._requested) / 1e9
            self.first_batch_after_start_s = seconds_since_start() - (clock_ns() - self._received) / 1e9
        self._count += 1
        if self._count <= self._warmup or not self._count % AT_ONCE:
            self.settle()

    def settle(self) -> None:
        """Assigns the CPU time so far to the steps so far. To be called after a warm-up."""
        self._cpu_log[len(self._steps)] = self._cpu_ns()

    def epoch(self) -> EpochTimes:
        """The times of the epoch so far; on an accelerator its last step must have completed."""
        cpu = dict(self._cpu_log)
        cpu.setdefault(len(self._steps), self._cpu_ns())
        times = self._steps.times(cpu)
        return times if self._events is None else self._events.corrected(times)

    def recent(self, steps: int) -> tuple[float, float, float] | None:
        """Samples per second, wait per step in ms, and wait in percent, over the last steps by the host's clock.

        None if the epoch has had too few steps.
        """
        columns = self._steps.columns(steps)
        wait, count = int(columns["wait"].sum()), len(columns["wait"])
        elapsed = sum(int(columns[lap].sum()) for lap in LAPS)
        if not elapsed or count < MIN_STEPS:
            return None
        return 1e9 * int(columns["samples"].sum()) / elapsed, wait / count / 1e6, 100 * wait / elapsed

    def totals_s(self) -> dict[str, float]:
        """Seconds of the whole run by phase, warm-up included."""
        return {phase: ns / 1e9 for phase, ns in self._totals.items()}

    def add_totals(self, totals_s: dict[str, float]) -> None:
        """Adds those of the run that is resumed, seconds by phase."""
        for phase, seconds in totals_s.items():
            self._totals[phase] += round(seconds * 1e9)

    def _cpu_ns(self) -> int:
        """CPU time of this process in the epoch's steps."""
        return self._cpu + (time.process_time_ns() - self._cpu_since if self._cpu_since is not None else 0)


class _DeviceEvents:
    """Device events at the marks of each step, read without waiting once the device has passed them.

    MPS may not support elapsed_time; the host's times are used then.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pending: deque[list[tuple[str, torch.Event, torch.Event]]] = deque()
        self._ahead = HostAhead()
        self.begin()

    def begin(self) -> None:
        self._pending.clear()
        self._read = array("q")  # a row of _SPANS for each step, nanoseconds; -1 where unknown
        self._last_end: torch.Event | None = None
        self._spans: list[tuple[str, torch.Event, torch.Event]] = []  # of the present step

    def step_begins(self) -> None:
        self._start = self._last = record(self._device, timed=True)
        self._spans = [("gap", self._last_end, self._start)] if self._last_end is not None else []
        self._collect()

    def part_ends(self, part: str) -> None:
        end = record(self._device, timed=True)
        self._spans.append((part, self._last, end))
        self._last = end

    def step_ends(self) -> None:
        self._last_end = record(self._device, timed=True)
        self._pending.append([*self._spans, ("compute", self._start, self._last_end)])
        self._ahead.issued(self._last_end)

    def pause(self) -> None:
        """Leaves the time until the next step out of the gaps between steps."""
        self._last_end = None

    def corrected(self, times: EpochTimes) -> EpochTimes:
        """The times by the device's clock, where it is known."""
        self._collect()
        found = np.full((len(times.wait), len(_SPANS)), -1)
        read = np.array(self._read, dtype=np.int64).reshape(-1, len(_SPANS))
        found[: len(read)] = read
        gaps, steps, parts = found[:, 0], found[:, 1], found[:, 2:]
        known = (gaps >= 0) & (steps >= 0)
        wait = np.where(known, np.minimum(times.wait, gaps), times.wait)  # waiting while the device computes is free
        return replace(
            times,
            wait=wait,
            transfer=np.where(known, gaps - wait, times.transfer),
            compute=np.where(steps >= 0, steps, times.compute),
            parts=np.where(parts >= 0, parts, times.parts),
        )

    def _collect(self) -> None:
        with suppress(RuntimeError):  # of a device that has failed; its next call raises
            while self._pending and self._pending[0][-1][2].query():  # in order, so the first unfinished one ends it
                row = dict.fromkeys(_SPANS, -1)
                for name, begin, end in self._pending.popleft():
                    with suppress(RuntimeError, ValueError):
                        row[name] = int(begin.elapsed_time(end) * 1e6)
                self._read.extend(row.values())
