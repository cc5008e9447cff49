"""Where the time of a training run goes: wait, transfer, compute, evaluation, checkpoint.

One mark moves through the loop; the time since the mark belongs to the phase that is named next, so every
nanosecond is counted once. What the figures mean for the user is said elsewhere.
"""

from __future__ import annotations

import time
from array import array
from collections import deque
from dataclasses import dataclass

import numpy as np
import psutil
import torch

PHASES = ("wait", "transfer", "compute", "evaluation", "checkpoint")


@dataclass(frozen=True)
class EpochTimes:
    """Times of one epoch's steps; each (steps,) int64, nanoseconds unless said.

    Attributes:
        wait: the loop stood still for the next batch; on an accelerator the smaller of that and the device's gap.
        transfer: moving the batch to the device, as far as the host took part.
        compute: the step; on an accelerator by the device's own events.
        elapsed: the whole step by the host's clock.
        load: what making the batch took in its worker, 0 where unknown.
        samples: samples of the step.
        bytes: bytes of its batch.
        steady: whether the step counts: warm-up steps and the run's first batch do not.
        evaluation_s, checkpoint_s: seconds, outside of every rate.
    """

    wait: np.ndarray
    transfer: np.ndarray
    compute: np.ndarray
    elapsed: np.ndarray
    load: np.ndarray
    samples: np.ndarray
    bytes: np.ndarray
    steady: np.ndarray
    evaluation_s: float
    checkpoint_s: float

    def mean_wait_ms(self) -> float:
        """What a steady step waited for its batch on average; goes with `loader/wait_pct`."""
        steady = self.steady if self.steady.any() else np.ones_like(self.steady)
        return float(self.wait[steady].mean() / 1e6) if steady.size else 0.0

    def metrics(self, workers: int) -> dict[str, float]:
        """Loader and compute metrics of the steady steps, by the names of the README's table.

        Args:
            workers: processes that load, at least 1, for `loader/worker_busy_pct`.
        """
        steady = self.steady if self.steady.any() else np.ones_like(self.steady)
        if not steady.size:
            return {}
        elapsed_s = self.elapsed[steady].sum() / 1e9
        wait_ms = self.wait[steady] / 1e6
        p50, p95, p99 = np.percentile(wait_ms, [50, 95, 99])
        found = {
            "loader/samples_per_s": self.samples[steady].sum() / elapsed_s,
            "loader/mb_per_s": self.bytes[steady].sum() / 1e6 / elapsed_s,
            "loader/wait_pct": 100 * wait_ms.sum() / 1e3 / elapsed_s,
            "loader/wait_ms_p50": p50,
            "loader/wait_ms_p95": p95,
            "loader/wait_ms_p99": p99,
            "loader/transfer_ms_p50": np.median(self.transfer[steady]) / 1e6,
            "compute/step_ms_p50": np.median(self.compute[steady]) / 1e6,
        }
        if self.load[steady].any():
            load_ms = self.load[steady] / 1e6
            found["loader/load_ms_p50"], found["loader/load_ms_p95"] = np.percentile(load_ms, [50, 95])
            found["loader/worker_busy_pct"] = min(100.0, 100 * load_ms.sum() / 1e3 / elapsed_s / workers)
        return {name: float(value) for name, value in found.items()}


class Clock:
    """The run's clock.

    Args:
        device: events are recorded on it where it is an accelerator; reading them never waits for it.
        warmup_steps: steps of the run that are left out of steady-state figures; so is the first of each batch size.

    Attributes:
        first_batch_s: seconds that the loop waited for the run's first batch, None before it.
        first_batch_after_start_s: seconds from the start of the process until that batch was there.

    Use: `begin()` at an epoch's start; in each step `lap("wait")`, `lap("transfer")`, `lap("compute")`, `step(...)`;
    afterwards `lap("evaluation")`, `lap("checkpoint")`, and `epoch()` for the account.
    """

    def __init__(self, device: torch.device, warmup_steps: int) -> None:
        self._events = _DeviceEvents(device) if device.type != "cpu" else None
        self._warmup = warmup_steps
        self._steps = 0
        self._sizes: set[int] = set()
        self.first_batch_s: float | None = None
        self.first_batch_after_start_s: float | None = None
        self._totals = dict.fromkeys(PHASES, 0)
        self._now = dict.fromkeys(PHASES, 0)
        self._rows: dict[str, array[int]] = {}
        self.begin()

    def begin(self) -> None:
        """An epoch starts now."""
        names = ("wait", "transfer", "compute", "elapsed", "load", "samples", "bytes", "steady")
        self._rows = {name: array("q") for name in names}
        self._aside = {"evaluation": 0, "checkpoint": 0}
        self._now = dict.fromkeys(PHASES, 0)
        self._mark = time.perf_counter_ns()
        if self._events:
            self._events.begin()

    def lap(self, phase: str) -> None:
        """The time since the last mark was `phase`."""
        now = time.perf_counter_ns()
        spent, self._mark = now - self._mark, now
        self._now[phase] += spent
        self._totals[phase] += spent
        if phase in self._aside:
            self._aside[phase] += spent
        elif self._events and phase == "transfer":
            self._events.step_begins()
        elif self._events and phase == "compute":
            self._events.step_ends()

    def skip(self) -> None:
        """The time since the last mark belongs to no phase."""
        self._mark = time.perf_counter_ns()

    def step(self, samples: int, nbytes: int, load_ns: int = 0) -> None:
        """Closes the present step's row."""
        now, rows = self._now, self._rows
        if self.first_batch_s is None:
            self.first_batch_s = now["wait"] / 1e9
            compute_s = (time.perf_counter_ns() - self._mark + now["transfer"] + now["compute"]) / 1e9
            self.first_batch_after_start_s = time.time() - psutil.Process().create_time() - compute_s
        rows["wait"].append(now["wait"])
        rows["transfer"].append(now["transfer"])
        rows["compute"].append(now["compute"])
        rows["elapsed"].append(now["wait"] + now["transfer"] + now["compute"])
        rows["load"].append(load_ns)
        rows["samples"].append(samples)
        rows["bytes"].append(nbytes)
        # a batch of a new size is warm-up as well: memory is allocated for it, and torch.compile compiles anew
        rows["steady"].append(self._steps >= max(1, self._warmup) and samples in self._sizes)
        self._sizes.add(samples)
        self._steps += 1
        self._now = dict.fromkeys(PHASES, 0)

    def epoch(self) -> EpochTimes:
        """The account of the present epoch so far; on an accelerator the host has seen its last step complete."""
        rows = {name: np.array(values, dtype=np.int64) for name, values in self._rows.items()}
        if self._events:
            gaps, steps = self._events.read(len(rows["wait"]))
            # where the device was not idle, the host's waiting cost nothing
            rows["wait"] = np.where(gaps >= 0, np.minimum(rows["wait"], gaps), rows["wait"])
            rows["compute"] = np.where(steps >= 0, steps, rows["compute"])
        steady = rows.pop("steady").astype(bool)
        aside = {f"{name}_s": value / 1e9 for name, value in self._aside.items()}
        return EpochTimes(**rows, steady=steady, evaluation_s=aside["evaluation_s"], checkpoint_s=aside["checkpoint_s"])

    def recent(self, steps: int) -> tuple[float, float, float]:
        """Samples per second, wait in ms per step and wait in percent, over the last steps by the host's clock."""
        elapsed, wait = sum(self._rows["elapsed"][-steps:]), sum(self._rows["wait"][-steps:])
        count = max(1, len(self._rows["wait"][-steps:]))
        if not elapsed:
            return 0.0, 0.0, 0.0
        return sum(self._rows["samples"][-steps:]) / elapsed * 1e9, wait / count / 1e6, 100 * wait / elapsed

    def totals_s(self) -> dict[str, float]:
        """Seconds of the whole run by phase, warm-up included."""
        return {phase: ns / 1e9 for phase, ns in self._totals.items()}

    def go_on(self, totals_s: dict[str, float]) -> None:
        """Adds what a run that is gone on with has spent before, as `totals_s` gave it."""
        for phase, seconds in totals_s.items():
            self._totals[phase] += round(seconds * 1e9)


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
