"""Throughput histories that were not measured: steps and loads of given lengths, arranged as workers would."""

from __future__ import annotations

from collections.abc import Sequence

from feedrate.loader import TRAITS
from feedrate.timing import EpochTimes
from feedrate.timing.epoch_times import Setup, Steps
from feedrate.timing.stages import MAIN_THREAD, STAGES, Load

MS = 1_000_000


def setup(engine: str = "process", workers: int = 2, cores: float = 2.0, **more: object) -> Setup:
    traits = TRAITS[engine if engine in TRAITS else "process"]
    return Setup(engine=engine, traits=traits, workers=workers, prefetch=2, cores=cores, **more)  # type: ignore[arg-type]


def history(
    load_ms: float | Sequence[float],
    step_ms: float,
    workers: int,
    *,
    steps: int = 100,
    receive_ms: float = 0.0,
    way_ms: float = 0.0,
    cpu_share: float = 1.0,
    step_cpu_share: float = 0.0,
    stage: str = "fetch",
    nbytes: int = 1000,
) -> EpochTimes:
    """Batches of 8 samples, loaded by `workers` processes, each two batches ahead, or by the main thread (0)."""
    loads = [load_ms] * steps if isinstance(load_ms, (int, float)) else list(load_ms)
    rows, cpu, now, free = Steps(2 * workers + 2), 0, 1_000 * MS, [1_000 * MS] * max(1, workers)
    issued = [now] * (2 * workers)
    for number, one in enumerate(loads):
        ns, worker = int(one * MS), number % max(1, workers)
        begin = max(free[worker], issued[number % len(issued)]) if workers else now
        end = free[worker] = begin + ns
        received = max(now, end + int(way_ms * MS)) + int(receive_ms * MS)
        marked = tuple(ns if name == stage else 0 for name in STAGES[1:])
        load = Load(begin, end, int(cpu_share * ns), worker if workers else MAIN_THREAD, *marked)
        step = int(step_ms * MS)
        cpu += int(step_cpu_share * step) + (int(cpu_share * ns) if not workers else 0)
        rows.add(now, received, received, received + step, 8, nbytes, load)
        if workers:
            issued[number % len(issued)] = received
        now = received + step
    return rows.times({len(loads): cpu})


def held_up(
    load_ms: float,
    step_ms: float,
    alone_ms: float,
    *,
    cpu_share: float = 0.5,
    step_cpu_ms: float = 0.0,
    steps: int = 200,
    quiet_every: int = 25,
    more_ms: Sequence[float] = (),
) -> EpochTimes:
    """One thread loads the next batch during each step; in one step of `quiet_every` after it, so that training waits.

    Args:
        more_ms: that each step takes longer, (steps,).
    """
    rows, now = Steps(4), 1_000 * MS
    load, cpu = int(load_ms * MS), int(load_ms * cpu_share * MS)
    made = Load(now - load, now, cpu, 0)
    for number in range(steps):
        wait = max(0, made.end_ns - now)
        more = more_ms[number] if len(more_ms) else 0.0
        step = int(((step_ms if number % quiet_every else alone_ms) + more) * MS)
        rows.add(now, now + wait, now + wait, now + wait + step, 8, 1000, made)
        begin = now + wait + (1 if number % quiet_every else step)
        made = Load(begin, begin + load, cpu, 0)
        now += wait + step
    return rows.times({steps: int(steps * step_cpu_ms * MS)})
