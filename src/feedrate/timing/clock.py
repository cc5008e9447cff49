"""Times a training loop: wait, transfer, compute, evaluation, checkpoint.

The time since the last mark belongs to the phase that is named next, so every nanosecond is counted once.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress
from dataclasses import replace

import numpy as np
import psutil
import torch

from feedrate.timing.ahead import HostAhead, record
from feedrate.timing.epoch_times import AT_ONCE, MIN_STEPS, PARTS, EpochTimes, Steps
from feedrate.timing.stages import clock_ns

ASIDE = ("evaluation", "checkpoint")  # outside of the steps
PHASES = (*PARTS, *ASIDE)


class Clock:
    """The clock of a run.

    Call `begin()` when an epoch starts; in each step `lap("wait")`, `lap("transfer")` if the batch is moved, and
    `step(...)`; afterwards `lap("evaluation")`, `lap("checkpoint")`, and `epoch()` for the times.

    Args:
        device: on an accelerator, `step` waits for the end of the step before the last, and device events time the
            steps.
        warmup_steps: first steps of the run that are not steady; nor is the first of each batch size.

    Attributes:
        first_batch_s: wait for the run's first batch, seconds; None before it.
        first_batch_after_start_s: from the start of the process to the first batch, seconds.
    """

    def __init__(self, device: torch.device, warmup_steps: int) -> None:
        self._events = _DeviceEvents(device) if device.type != "cpu" else None
        self._warmup = max(1, warmup_steps)
        self._count = 0  # steps of earlier epochs
        self._seen_sizes: set[int] = set()
        self._steps = Steps()
        self.first_batch_s: float | None = None
        self.first_batch_after_start_s: float | None = None
        self._totals = dict.fromkeys(PHASES, 0)  # of earlier epochs
        self._aside = dict.fromkeys(ASIDE, 0)  # of this epoch
        self._requested = self._received = self._mark = 0
        self.begin()

    def begin(self) -> None:
        """Starts an epoch."""
        self._totals = self._all()
        self._count += len(self._steps)
        self._seen_sizes.update(self._steps.columns(len(self._steps))["samples"].tolist())
        self._steps = Steps(self._warmup - self._count, self._seen_sizes)
        self._write = self._steps.fresh.append
        self._aside = dict.fromkeys(ASIDE, 0)
        self._cpu, self._cpu_since = 0, time.process_time_ns()  # type: int, int | None
        self._cpu_log: list[tuple[int, int]] = []  # (steps, CPU time in them)
        self._until = self._steps_until_settled()
        self._requested = self._received = self._mark = clock_ns()
        if self._events:
            self._events.begin()

    def lap(self, phase: str) -> None:
        """Ends a phase: wait, transfer, evaluation or checkpoint."""
        now = clock_ns()
        if phase == "wait":
            self._requested, self._received = self._mark, now
        elif phase in ASIDE:
            self._not_idle()
            self._aside[phase] += now - self._mark
            self._cpu_since = time.process_time_ns()
        self._mark = now
        if phase == "transfer" and self._events is not None:
            self._events.step_begins()

    def skip(self) -> None:
        """Counts the time since the last mark as no phase. To be called right after the last step of an epoch.

        CPU time is not counted again until the next `lap` of evaluation or checkpoint, or `begin`.
        """
        self._cpu, self._cpu_since = self._cpu_ns(), None
        self._totals["wait"] += self._unfinished_wait()
        self._not_idle()
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
        self._write((self._requested, self._received, self._mark, now, samples, nbytes, timing))
        self._mark = now
        self._until -= 1
        if not self._until:
            self.settle()

    def settle(self) -> None:
        """Assigns the CPU time so far to the steps so far. To be called after a warm-up."""
        if self.first_batch_s is None:
            requested, received, *_ = self._steps.fresh[0]
            self.first_batch_s = (received - requested) / 1e9
            started = psutil.Process().create_time()
            self.first_batch_after_start_s = time.time() - started - (clock_ns() - received) / 1e9
        self._steps.settle()
        self._cpu_log.append((len(self._steps), self._cpu_ns()))
        self._until = self._steps_until_settled()

    def epoch(self) -> EpochTimes:
        """The times of the epoch so far; on an accelerator its last step must have completed."""
        aside = {f"{name}_s": value / 1e9 for name, value in self._aside.items()}
        times = self._steps.times([*self._cpu_log, (len(self._steps), self._cpu_ns())], **aside)
        if self._events is None:
            return times
        gaps, steps = self._events.read(len(times.wait))
        known = (gaps >= 0) & (steps >= 0)
        # waiting costs nothing while the device computes
        wait = np.where(known, np.minimum(times.wait, gaps), times.wait)
        transfer = np.where(known, gaps - wait, times.transfer)
        compute = np.where(steps >= 0, steps, times.compute)
        return replace(times, wait=wait, transfer=transfer, compute=compute, elapsed=wait + transfer + compute)

    def recent(self, steps: int) -> tuple[float, float, float] | None:
        """Samples per second, wait per step in ms, and wait in percent, over the last steps by the host's clock.

        None if the epoch has had too few steps.
        """
        columns = self._steps.columns(steps)
        wait, transfer, compute = (int(columns[phase].sum()) for phase in PARTS)
        elapsed, count = wait + transfer + compute, len(columns["wait"])
        if not elapsed or count < MIN_STEPS:
            return None
        return 1e9 * int(columns["samples"].sum()) / elapsed, wait / count / 1e6, 100 * wait / elapsed

    def totals_s(self) -> dict[str, float]:
        """Seconds of the whole run by phase, warm-up included."""
        return {phase: ns / 1e9 for phase, ns in self._all().items()}

    def go_on(self, totals_s: dict[str, float]) -> None:
        """Adds the totals of a resumed run."""
        for phase, seconds in totals_s.items():
            self._totals[phase] += round(seconds * 1e9)

    def _all(self) -> dict[str, int]:
        wait, *others = *self._steps.spent(), *self._aside.values()
        of_epoch = dict(zip(PHASES, (wait + self._unfinished_wait(), *others), strict=True))
        return {phase: ns + of_epoch[phase] for phase, ns in self._totals.items()}

    def _unfinished_wait(self) -> int:
        """A wait without a step; 0 once it is counted, and the mark has moved on."""
        return self._received - self._requested if self._mark == self._received else 0

    def _not_idle(self) -> None:
        """The device's time until the next step is no gap between steps."""
        if self._events is not None:
            self._events.pause()

    def _cpu_ns(self) -> int:
        """CPU time of this process in the epoch's steps."""
        return self._cpu + (time.process_time_ns() - self._cpu_since if self._cpu_since is not None else 0)

    def _steps_until_settled(self) -> int:
        """After the run's first step, after its warm-up, and regularly."""
        if self.first_batch_s is None:
            return 1
        warmup = self._warmup - self._count - len(self._steps)
        return min(warmup, AT_ONCE) if warmup > 0 else AT_ONCE


class _DeviceEvents:
    """Device events at start and end of each step, read without waiting once the device has passed them.

    MPS may not support elapsed_time; the host's times are used then.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pending: deque[tuple[dict[int, int], int, torch.Event, torch.Event]] = deque()
        self._ahead = HostAhead()
        self.begin()

    def begin(self) -> None:
        self._pending.clear()
        self._gaps: dict[int, int] = {}
        self._lengths: dict[int, int] = {}
        self._number = 0
        self._last_end: torch.Event | None = None

    def step_begins(self) -> None:
        self._start = record(self._device, timed=True)
        if self._last_end is not None:
            self._pending.append((self._gaps, self._number, self._last_end, self._start))
        self._collect()

    def step_ends(self) -> None:
        end = record(self._device, timed=True)
        self._pending.append((self._lengths, self._number, self._start, end))
        self._last_end = end
        self._number += 1
        self._ahead.issued(end)

    def pause(self) -> None:
        self._last_end = None

    def read(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Gap before each step and its length, (steps,) int64 nanoseconds each; -1 where unknown."""
        self._collect()
        gaps, lengths = (
            np.array([found.get(number, -1) for number in range(steps)], dtype=np.int64)
            for found in (self._gaps, self._lengths)
        )
        return gaps, lengths

    def _collect(self) -> None:
        while self._pending and self._passed(self._pending[0][3]):  # in order, so the first unfinished one ends it
            found, number, begin, end = self._pending.popleft()
            with suppress(RuntimeError, ValueError):
                found[number] = int(begin.elapsed_time(end) * 1e6)

    @staticmethod
    def _passed(event: torch.Event) -> bool:
        try:
            return bool(event.query())
        except RuntimeError:  # the device has failed; its next call raises
            return False
