"""Where the time of a training run goes: wait, transfer, compute, evaluation, checkpoint.

One mark moves through the loop; the time since the mark belongs to the phase that is named next, so every
nanosecond is counted once. What the figures mean for the user is said elsewhere.
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
    """The run's clock.

    Args:
        device: an accelerator's own events tell how long a step took there; `step` waits for the end of the step before
            the last, reading the events never waits.
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
        self._totals = dict.fromkeys(PHASES, 0)  # of the run before this epoch
        self._aside = dict.fromkeys(ASIDE, 0)  # of this epoch
        self._asked = self._got = self._mark = 0
        self.begin()

    def begin(self) -> None:
        """An epoch starts now."""
        self._totals = self._all()
        self._count += len(self._steps)
        self._sizes.update(self._steps.columns(len(self._steps))["samples"].tolist())
        self._steps = Steps(self._warmup - self._count, self._sizes)
        self._write = self._steps.fresh.append
        self._aside = dict.fromkeys(ASIDE, 0)
        self._cpu, self._computing_since = 0, time.process_time_ns()  # type: int, int | None
        self._told: list[tuple[int, int]] = []
        self._until = self._steps_until_pause()
        self._asked = self._got = self._mark = clock_ns()
        if self._events:
            self._events.begin()

    def lap(self, phase: str) -> None:
        """The time since the last mark was `phase`: wait, transfer, evaluation or checkpoint."""
        now = clock_ns()
        if phase == "wait":
            self._asked, self._got = self._mark, now
        elif phase in ASIDE:
            self._not_idle()
            self._aside[phase] += now - self._mark
            self._computing_since = time.process_time_ns()
        self._mark = now
        if phase == "transfer" and self._events is not None:
            self._events.step_begins()

    def skip(self) -> None:
        """The time since the last mark belongs to no phase, and what this process computes from now on to no step.

        To be called after the last step before anything else; the next `lap` of evaluation or checkpoint, or `begin`,
        ends it.
        """
        self._cpu, self._computing_since = self._computed(), None
        self._totals["wait"] += self._waited_in_vain()
        self._not_idle()
        self._mark = clock_ns()

    def _not_idle(self) -> None:
        """What the device does until the next step is no gap between two steps."""
        if self._events is not None:
            self._events.pause()

    def _waited_in_vain(self) -> int:
        """What was waited since the last step; nothing more where it is counted, and the mark went on."""
        return self._got - self._asked if self._mark == self._got else 0

    def _computed(self) -> int:
        """In the steps of this epoch."""
        since = self._computing_since
        return self._cpu + (time.process_time_ns() - since if since is not None else 0)

    def step(self, samples: int, nbytes: int, made: tuple[int, ...] | None = None) -> None:
        """The present step is over, and the time since the last mark was its compute.

        Args:
            made: how its batch was made, the values of a Load, where the loader says.
        """
        if self._events is not None:
            self._events.step_ends()
        now = clock_ns()
        # instants, and no call that is not needed: what runs between two batches finds nothing of it in the caches
        self._write((self._asked, self._got, self._mark, now, samples, nbytes, made))
        self._mark = now
        self._until -= 1
        if not self._until:
            self.settle()

    def settle(self) -> None:
        """What this process has computed until now belongs to the steps so far, to be called after a warm-up."""
        if self.first_batch_s is None:
            self._first_step()
        self._steps.settle()
        self._told.append((len(self._steps), self._computed()))
        self._until = self._steps_until_pause()

    def _steps_until_pause(self) -> int:
        """Steps until it is asked what was computed: after the run's first, after its warm-up, and regularly."""
        if self.first_batch_s is None:
            return 1
        warmup = self._warmup - self._count - len(self._steps)
        return min(warmup, AT_ONCE) if warmup > 0 else AT_ONCE

    def _first_step(self) -> None:
        asked, got, *_ = self._steps.fresh[0]
        self.first_batch_s = (got - asked) / 1e9
        self.first_batch_after_start_s = time.time() - psutil.Process().create_time() - (clock_ns() - got) / 1e9

    def epoch(self) -> EpochTimes:
        """The account of the present epoch so far; on an accelerator the host has seen its last step complete."""
        aside = {f"{name}_s": value / 1e9 for name, value in self._aside.items()}
        times = self._steps.times([*self._told, (len(self._steps), self._computed())], **aside)
        if self._events is None:
            return times
        gaps, steps = self._events.read(len(times.wait))
        known = (gaps >= 0) & (steps >= 0)
        # where the device was not idle, the host's waiting cost nothing
        wait = np.where(known, np.minimum(times.wait, gaps), times.wait)
        transfer = np.where(known, gaps - wait, times.transfer)
        compute = np.where(steps >= 0, steps, times.compute)
        return replace(times, wait=wait, transfer=transfer, compute=compute, elapsed=wait + transfer + compute)

    def recent(self, steps: int) -> tuple[float, float, float] | None:
        """Samples per second, wait in ms per step and wait in percent, over the last steps by the host's clock; None
        where the epoch has had too few.
        """
        columns = self._steps.columns(steps)
        wait, transfer, compute = (int(columns[phase].sum()) for phase in PARTS)
        elapsed = wait + transfer + compute
        if not elapsed or len(columns["wait"]) < MIN_STEPS:
            return None
        return 1e9 * int(columns["samples"].sum()) / elapsed, wait / len(columns["wait"]) / 1e6, 100 * wait / elapsed

    def totals_s(self) -> dict[str, float]:
        """Seconds of the whole run by phase, warm-up included."""
        return {phase: ns / 1e9 for phase, ns in self._all().items()}

    def _all(self) -> dict[str, int]:
        wait, *others = *self._steps.spent(), *self._aside.values()
        of_epoch = dict(zip(PHASES, (wait + self._waited_in_vain(), *others), strict=True))
        return {phase: ns + of_epoch[phase] for phase, ns in self._totals.items()}

    def go_on(self, totals_s: dict[str, float]) -> None:
        """Adds what a run that is gone on with has spent before, as `totals_s` gave it."""
        for phase, seconds in totals_s.items():
            self._totals[phase] += round(seconds * 1e9)


class _DeviceEvents:
    """Start and end of each step on the device's own clock; pairs are read when the device has passed them.

    MPS may be unable to tell the time between two events; the host's clock, which it has to be close to, counts then.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pending: deque[tuple[int, str, torch.Event, torch.Event]] = deque()
        self._ahead = HostAhead()
        self.begin()

    def begin(self) -> None:
        self._pending.clear()
        self._gap: dict[int, int] = {}
        self._step: dict[int, int] = {}
        self._number = 0
        self._last_end: torch.Event | None = None

    def step_begins(self) -> None:
        self._start = record(self._device, timed=True)
        if self._last_end is not None:
            self._pending.append((self._number, "gap", self._last_end, self._start))
        self._collect()

    def step_ends(self) -> None:
        end = record(self._device, timed=True)
        self._pending.append((self._number, "step", self._start, end))
        self._last_end = end
        self._number += 1
        self._ahead.issued(end)

    def pause(self) -> None:
        self._last_end = None

    def read(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """(steps,) int64 nanoseconds each: gap before a step, length of it; -1 where the device has not said."""
        self._collect()
        gaps, lengths = np.full(steps, -1, dtype=np.int64), np.full(steps, -1, dtype=np.int64)
        for found, values in ((self._gap, gaps), (self._step, lengths)):
            for number, ns in found.items():
                if number < steps:
                    values[number] = ns
        return gaps, lengths

    def _collect(self) -> None:
        while self._pending and self._passed(self._pending[0][3]):  # in order, so the first unfinished one ends it
            number, kind, begin, end = self._pending.popleft()
            found = self._gap if kind == "gap" else self._step
            with suppress(RuntimeError, ValueError):
                found[number] = int(begin.elapsed_time(end) * 1e6)

    @staticmethod
    def _passed(event: torch.Event) -> bool:
        try:
            return bool(event.query())
        except RuntimeError:  # the device has failed, as the next call to it says
            return False
