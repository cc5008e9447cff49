"""How much loading threads slow each other down is measured from batches loaded alone and together."""

from __future__ import annotations

import pytest

from feedrate.timing import EpochTimes
from feedrate.timing.ceilings import loader_ns
from feedrate.timing.epoch_times import Steps
from feedrate.timing.stages import Load
from histories import MS, setup


def in_turns(lone_ms: int, together_ms: int, rounds: int = 20) -> EpochTimes:
    """Times of two threads: one batch loaded alone, then two at the same time."""
    rows, now = Steps(0, {8}), 1_000 * MS
    for number in range(rounds):
        for begin, took in ((now, lone_ms), (now + lone_ms * MS, together_ms), (now + lone_ms * MS, together_ms)):
            load = Load(begin, begin + took * MS, 5 * MS, number % 2)
            end = begin + took * MS
            rows.add(end, end, end, end + MS, 8, 1000, load)
        now += (lone_ms + together_ms + 1) * MS
    return rows.times()


def test_threads_that_hold_the_interpreter_are_no_faster_than_one() -> None:
    times = in_turns(10, 20)
    assert times.in_the_way == pytest.approx(1.0)
    assert times.load_alone == pytest.approx(10 * MS)
    assert loader_ns(times, setup("thread", 2)) == pytest.approx(10 * MS)
    assert loader_ns(times, setup("thread", 4)) == pytest.approx(10 * MS)


def test_threads_that_do_not_are_faster_by_their_number() -> None:
    times = in_turns(10, 10)
    assert times.in_the_way == 0
    assert loader_ns(times, setup("thread", 2)) == pytest.approx(5 * MS)


def test_nothing_is_claimed_where_all_batches_were_made_together() -> None:
    assert in_turns(10, 20, rounds=2).in_the_way == 0
