"""Where the time of a training run goes: wait, transfer, compute, evaluation, checkpoint.

One mark moves through the loop; the time since the mark belongs to the phase that is named next, so every
nanosecond is counted once. What the figures mean for the user is said elsewhere.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import psutil
import torch

from feedrate.timing.epoch_times import AT_ONCE, EpochTimes, Steps

ASIDE = ("evaluation", "checkpoint")  # outside of the steps
PHASES = ("wait", "transfer", "compute", *ASIDE)


class Clock:
    """The run's clock.

    Args:
        device: events are recorded on it where it is an accelerator; reading them never waits for it.
        warmup_steps: steps of the run that are left out of steady-state figures; so is the first of each batch size.

    Attributes:
        first_batch_s: seconds that the loop waited for the run's first batch, None before it.
        first_batch_after_start_s: seconds from the start of the process until that batch was there.

    Use: `begin()` at an epoch's start; in each step `lap("wait")`, `lap("transfer")` if it is moved, and `step(...)`;
    afterwards `lap("evaluation")`, `lap("checkpoint")`, and `epoch()` for the account.
    """

    def __init__(self, device: torch.device, warmup_steps: int) -> None:
        self._events = _DeviceEvents(device) if device.type != "cpu" else None
        self._warmup = max(1, warmup_steps)
        self._count = 0  # steps of the run before this epoch
        self._sizes: set[int] = set()
        self._steps = Steps()
        self.first_batch_s: float | None = None
        self.first_batch_after_start_s: float | None = None
        self._totals = dict.fromkeys(PHASES, 0)
        self._cpu, self._computing_since = 0, None  # type: int, int | None
        # what else is to be done at the end of a phase; for a step on the CPU nothing
        self._more: dict[str, Callable[[int], None]] = {name: partial(self._beside, name) for name in ASIDE}
        if (events := self._events) is not None:
            self._more["transfer"] = lambda _: events.step_begins()
        self.begin()

    def begin(self) -> None:
        """An epoch starts now."""
        self._count += len(self._steps)
        self._sizes.update(self._steps.columns(("samples",), len(self._steps))[:, 0].tolist())
        self._steps = Steps(self._warmup - self._count, self._sizes)
        self._aside = dict.fromkeys(ASIDE, 0)
        self._before = self._of_a_step()
        self._cpu, self._computing_since = 0, time.process_time_ns()
        self._told: list[tuple[int, int]] = []
        self._until = max(0, self._warmup - self._count) or AT_ONCE  # steps until it is asked what was computed
        self._asked = self._mark = time.perf_counter_ns()
        if self._events:
            self._events.begin()

    def lap(self, phase: str) -> None:
        """The time since the last mark was `phase`."""
        now = time.perf_counter_ns()
        if phase == "wait":
            self._asked = self._mark
        spent = now - self._mark
        self._mark = now
        self._totals[phase] += spent
        if phase in self._more:
            self._more[phase](spent)

    def _beside(self, phase: str, spent: int) -> None:
        self._aside[phase] += spent
        self._computing_since = time.process_time_ns()

    def skip(self) -> None:
        """The time since the last mark belongs to no phase, and what this process computes from now on to no step.

        To be called after the last step before anything else; the next `lap` of evaluation or checkpoint, or `begin`,
        ends it.
        """
        self._cpu, self._computing_since = self._computed(), None
        self._mark = time.perf_counter_ns()

    def _computed(self) -> int:
        """In the steps of this epoch."""
        since = self._computing_since
        return self._cpu + (time.process_time_ns() - since if since is not None else 0)

    def step(self, samples: int, nbytes: int, made: tuple[int, ...] | None = None) -> None:
        """The present step is over, and the time since the last mark was its compute.

        Args:
            made: how its batch was made, the values of a Load, where the loader says.
        """
        now, totals, before = time.perf_counter_ns(), self._totals, self._before
        totals["compute"] += now - self._mark
        self._mark = now
        if self._events is not None:
            self._events.step_ends()
        if self.first_batch_s is None:
            self._first_step()
        # not by _of_a_step: each call between two batches finds nothing of it in the caches
        wait, transfer, compute = self._before = totals["wait"], totals["transfer"], totals["compute"]
        step = (self._asked, wait - before[0], transfer - before[1], compute - before[2], samples, nbytes)
        self._steps.add(step, made)
        self._until -= 1
        if not self._until:
            self.settle()

    def settle(self) -> None:
        """What this process has computed until now belongs to the steps so far, to be called after a warm-up."""
        self._told.append((len(self._steps), self._computed()))
        self._until = AT_ONCE

    def _first_step(self) -> None:
        wait, transfer, compute = (now - then for now, then in zip(self._of_a_step(), self._before, strict=True))
        self.first_batch_s = wait / 1e9
        compute_s = (time.perf_counter_ns() - self._mark + transfer + compute) / 1e9
        self.first_batch_after_start_s = time.time() - psutil.Process().create_time() - compute_s

    def _of_a_step(self) -> tuple[int, int, int]:
        """What steps have taken since the run began: wait, transfer, compute."""
        totals = self._totals
        return totals["wait"], totals["transfer"], totals["compute"]

    def epoch(self) -> EpochTimes:
        """The account of the present epoch so far; on an accelerator the host has seen its last step complete."""
        aside = {f"{name}_s": value / 1e9 for name, value in self._aside.items()}
        times = self._steps.times([*self._told, (len(self._steps), self._computed())], **aside)
        if self._events is None:
            return times
        gaps, steps = self._events.read(len(times.wait))
        # where the device was not idle, the host's waiting cost nothing
        wait = np.where(gaps >= 0, np.minimum(times.wait, gaps), times.wait)
        return replace(times, wait=wait, compute=np.where(steps >= 0, steps, times.compute))

    def recent(self, steps: int) -> tuple[float, float, float]:
        """Samples per second, wait in ms per step and wait in percent, over the last steps by the host's clock."""
        table = self._steps.columns(("samples", *PHASES[:3]), steps)
        samples, wait, *others = table.sum(axis=0).tolist()
        elapsed = wait + sum(others)
        if not elapsed:
            return 0.0, 0.0, 0.0
        return samples / elapsed * 1e9, wait / len(table) / 1e6, 100 * wait / elapsed

    def totals_s(self) -> dict[str, float]:
        """Seconds of the whole run by phase, warm-up included."""
        return {phase: ns / 1e9 for phase, ns in self._totals.items()}

    def go_on(self, totals_s: dict[str, float]) -> None:
        """Adds what a run that is gone on with has spent before, as `totals_s` gave it."""
        for phase, seconds in totals_s.items():
            self._totals[phase] += round(seconds * 1e9)
        self._before = self._of_a_step()


class _DeviceEvents:
    """Start and end of each step on the device's own clock; pairs are read when the device has passed them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pending: deque[tuple[int, str, torch.Event, torch.Event]] = deque()
        self.begin()

    def begin(self) -> None:
        self._pending.clear()
        self._gap: dict[int, int] = {}
        self._step: dict[int, int] = {}
        self._number = 0
        self._last_end: torch.Event | None = None

    def step_begins(self) -> None:
        self._start = self._record()
        if self._last_end is not None:
            self._pending.append((self._number, "gap", self._last_end, self._start))
        self._collect()

    def step_ends(self) -> None:
        end = self._record()
        self._pending.append((self._number, "step", self._start, end))
        self._last_end = end
        self._number += 1

    def read(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """(steps,) int64 nanoseconds each: gap before a step, length of it; -1 where the device has not said."""
        self._collect()
        gaps, lengths = np.full(steps, -1, dtype=np.int64), np.full(steps, -1, dtype=np.int64)
        for found, values in ((self._gap, gaps), (self._step, lengths)):
            for number, ns in found.items():
                if number < steps:
                    values[number] = ns
        return gaps, lengths

    def _record(self) -> torch.Event:
        event = torch.Event(self._device, enable_timing=True)
        event.record(torch.accelerator.current_stream(self._device))
        return event

    def _collect(self) -> None:
        while self._pending and self._pending[0][3].query():  # in order, so the first unfinished one ends it
            number, kind, begin, end = self._pending.popleft()
            found = self._gap if kind == "gap" else self._step
            found[number] = int(begin.elapsed_time(end) * 1e6)
