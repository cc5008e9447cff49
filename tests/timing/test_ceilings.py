"""The rate of the loader alone: its workers without a pause, as far as cores and GIL allow."""

from __future__ import annotations

import pytest

from feedrate.timing import EpochTimes
from feedrate.timing.ceilings import loader_ns, one_at_a_time
from feedrate.timing.epoch_times import Steps
from feedrate.timing.stages import Load
from histories import MS, setup


def worker_that_rests(rest_ms: float, load_ms: float = 4.0, step_ms: float = 1.0, steps: int = 60) -> EpochTimes:
    """One process, two batches ahead, that needs `rest_ms` from the end of a batch to the beginning of the next."""
    rows, now, free = Steps(4), 1_000 * MS, 1_000 * MS
    issued = [now, now]
    for number in range(steps):
        begin = max(free, issued[number % 2]) + int(rest_ms * MS)
        end = free = begin + int(load_ms * MS)
        received = max(now, end)
        load = Load(begin, end, end - begin, 0)
        rows.add(now, received, received, received + int(step_ms * MS), 8, 1000, load)
        issued[number % 2] = received
        now = received + int(step_ms * MS)
    return rows.times()


def test_what_a_busy_worker_needs_between_two_batches_counts() -> None:
    times = worker_that_rests(1.0)
    assert times.pause_ns(ahead=2) == pytest.approx(1 * MS)
    assert loader_ns(times, setup("process", 1)) == pytest.approx(5 * MS)


def test_a_worker_that_waits_for_its_next_order_rests_for_nobody_knows_how_long() -> None:
    times = worker_that_rests(1.0, step_ms=20)
    assert times.wait[10:].max() == 0
    assert times.pause_ns(ahead=2) == 0
    assert loader_ns(times, setup("process", 1)) == pytest.approx(4 * MS)


def test_threads_that_hold_up_the_steps_make_no_more_than_one_would() -> None:
    rows, now, load, cpu = Steps(4), 1_000 * MS, 5 * MS, 4 * MS
    for number in range(100):
        quiet = number % 10 == 0  # nothing is loaded meanwhile, and the step takes a fifth of what it does otherwise
        step = (1 if quiet else 5) * MS
        begin = now + (step if quiet else 0)
        rows.add(now, now, now, now + step, 8, 1000, Load(begin, begin + load, cpu, number % 2))
        now += step
    times, threads = rows.times({100: 100 * cpu}), setup("thread", 2)
    assert one_at_a_time(times, threads)
    assert loader_ns(times, threads) == pytest.approx(cpu)
