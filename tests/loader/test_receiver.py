"""The receiving thread prefetches one batch, keeps the order, passes on errors, and never delays an end."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from feedrate.errors import UserError
from feedrate.loader.engines.receiver import NAME, Receiver

Receivers = Callable[[], set[threading.Thread]]


class Source(Iterator[int]):
    """Counts, and records how often it was called; may fail, or hang until `free` is set."""

    def __init__(self, count: int, error: BaseException | None = None, hangs_at: int = -1) -> None:
        self.requested, self.count, self.error, self.hangs_at = 0, count, error, hangs_at
        self.free, self.hanging = threading.Event(), threading.Event()

    def __next__(self) -> int:
        self.requested += 1
        if self.requested - 1 == self.hangs_at:
            self.hanging.set()
            self.free.wait()
        if self.requested > self.count:
            raise self.error or StopIteration
        return self.requested - 1


def until(true: Any) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def receivers() -> Callable[[], set[threading.Thread]]:
    """Those of this test; one whose workers were killed in an earlier one takes some seconds to find that out."""

    def alive() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == NAME}

    before = alive()
    return lambda: alive() - before


def test_batches_come_in_order_one_of_them_taken_ahead(receivers: Receivers) -> None:
    source = Source(5)
    received = Receiver(source, 0, pytest.fail)
    assert source.requested == 0  # processes may still be forked
    assert receivers() == set()
    assert next(received) == 0
    until(lambda: source.requested == 2)
    time.sleep(0.05)
    assert source.requested == 2
    assert list(received) == [1, 2, 3, 4]
    until(lambda: receivers() == set())


def test_an_error_comes_where_its_batch_would_have_come() -> None:
    received = Receiver(Source(2, KeyError("lost")), 0, pytest.fail)
    assert [next(received), next(received)] == [0, 1]
    with pytest.raises(KeyError, match="lost"):
        next(received)
    assert list(received) == []


def test_who_lets_go_of_it_lets_go_of_the_workers(receivers: Receivers) -> None:
    source = Source(9)
    held = weakref.ref(source)
    received = Receiver(source, 0, pytest.fail)
    del source
    next(received)
    del received
    assert receivers() == set()
    assert held() is None


def test_workers_that_nobody_waits_for_any_more_are_given_up(
    monkeypatch: pytest.MonkeyPatch, receivers: Receivers
) -> None:
    monkeypatch.setattr("feedrate.loader.engines.receiver.PATIENCE_S", 0.05)
    source = Source(9, hangs_at=1)
    received = Receiver(source, 0, source.free.set)
    assert next(received) == 0
    assert source.hanging.wait(30)
    assert received.end() is False
    assert source.free.is_set()
    until(lambda: receivers() == set())


def test_a_batch_that_does_not_come_in_time_ends_in_an_error_with_the_remedy() -> None:
    source = Source(9, hangs_at=0)
    received = Receiver(source, 0.05, pytest.fail)
    with pytest.raises(UserError, match=r"loader\.timeout: a batch did not come within 0\.05 seconds"):
        next(received)
    source.free.set()
    assert received.end() is True
