"""The model of loader and step agrees with what follows from their costs on paper."""

from __future__ import annotations

import pytest

from feedrate.timing.pipeline import Costs, seconds_per_batch


def costs(load: float, step: float, *, load_cpu: float = 0.0, step_cpu: float = 0.0, receive: float = 0.0) -> Costs:
    return Costs(load=[load] * 400, step=[step] * 400, load_cpu=load_cpu, step_cpu=step_cpu, receive=receive)


@pytest.mark.parametrize(("workers", "expected"), [(0, 0.050), (1, 0.040), (2, 0.020), (4, 0.010), (8, 0.010)])
@pytest.mark.parametrize("threads", [False, True])
def test_the_slower_side_decides(workers: int, expected: float, threads: bool) -> None:
    assert seconds_per_batch(costs(0.040, 0.010), workers, cores=8, threads=threads) == pytest.approx(expected)


def test_no_more_can_be_computed_than_there_are_cores() -> None:
    burning = costs(0.040, 0.010, load_cpu=0.040, step_cpu=0.004)
    assert seconds_per_batch(burning, 8, cores=2) == pytest.approx(0.022)


def test_taking_over_a_batch_is_on_the_step_s_side() -> None:
    assert seconds_per_batch(costs(0.001, 0.004, receive=0.002), 4, cores=8) == pytest.approx(0.006)


def test_batches_made_ahead_bridge_a_slow_one() -> None:
    load = [0.010 if number % 20 else 0.110 for number in range(400)]  # 15 ms on average
    uneven = Costs(load=load, step=[0.010] * 400, load_cpu=0, step_cpu=0, receive=0)
    few, many = (seconds_per_batch(uneven, 2, cores=8, prefetch=prefetch) for prefetch in (2, 16))
    assert few > 1.2 * many
    assert many == pytest.approx(0.010, rel=0.05)


def test_a_free_thread_takes_the_next_batch_whereas_processes_have_theirs_dealt_out() -> None:
    load = [0.030 if number % 2 else 0.001 for number in range(400)]  # with two processes, one gets all the long ones
    uneven = Costs(load=load, step=[0.001] * 400, load_cpu=0, step_cpu=0, receive=0)
    dealt, taken = (seconds_per_batch(uneven, 2, cores=8, threads=threads) for threads in (False, True))
    assert dealt == pytest.approx(0.015, rel=0.05)
    assert taken < dealt
