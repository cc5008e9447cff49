"""Loading threads pause now and then for a step, to measure its own length; they deliver the same batches."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from feedrate.loader import Loader
from feedrate.loader.engines.step_probe import FIRST, StepProbe
from feedrate.timing import EpochTimes

STEP_S = 0.002


class Slow(Dataset[Any]):
    thread_safe = True

    def __len__(self) -> int:
        return 400

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        time.sleep(0.001)
        return torch.full((2,), index), index


def trained(workers: int, **settings: Any) -> tuple[Loader, list[list[int]]]:
    """The loader after an epoch of short steps, with more loading than they take."""
    engine = {"engine": "thread"} if workers else {}
    loader = Loader(Slow(), 4, shuffle=True, seed=0, num_workers=workers, **engine, **settings)
    seen = []
    for _, y in loader:
        time.sleep(STEP_S)
        seen.append(y.tolist())
    return loader, seen


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_some_steps_have_no_loading_at_their_side_though_threads_never_idle(workers: int) -> None:
    loader, seen = trained(workers)
    times = loader.report().times
    assert times.quiet.sum() >= 2
    assert times.quiet.sum() < 0.5 * len(seen)
    begin, end = times.begin, times.end
    for step in times.quiet.nonzero()[0]:
        left, right = times.requested[step] + times.wait[step], times.requested[step] + times.elapsed[step]
        assert not ((begin < right) & (end > left)).any()


def test_the_second_epoch_shows_by_itself_how_long_a_step_is_and_a_batch_alone() -> None:
    loader = Loader(Slow(), 4, seed=0, num_workers=2, engine="thread", persistent_workers=True)
    reported = []
    for _ in range(2):
        for _ in loader:
            time.sleep(STEP_S)
        reported.append(loader.report().times)
    loader.close()
    for times in reported:  # the gate closes four times an epoch; without a restart it would close once in the second
        assert times.quiet.sum() >= 2
        lone = [i for i in range(len(times.begin)) if not _beside(times, i)]
        assert len(lone) >= 2


def _beside(times: EpochTimes, number: int) -> bool:
    """Whether another batch was being loaded for a fourth of the time of that one."""
    begin, end = times.begin[number], times.end[number]
    other = np.arange(len(times.begin)) != number
    shared = np.minimum(times.end, end) - np.maximum(times.begin, begin)
    return bool((shared[other] > 0.25 * (end - begin)).any())


def test_a_gate_changes_no_batch() -> None:
    loaders = [trained(workers, prefetch_factor=ahead) for workers, ahead in ((0, None), (1, 2), (3, 1), (2, 8))]
    assert len({loader.order_digest() for loader, _ in loaders}) == 1
    assert all(seen == loaders[0][1] for _, seen in loaders)


def test_a_closed_gate_opens_for_a_batch_that_nobody_makes() -> None:
    gate = StepProbe(1)
    for _ in range(FIRST):
        gate.requested(begun=True)
    passed = threading.Event()
    thread = threading.Thread(target=lambda: (gate.enter(), passed.set()), daemon=True)
    thread.start()
    assert not passed.wait(0.05)
    gate.requested(begun=False)
    assert passed.wait(60)


def test_between_two_epochs_the_gate_is_open() -> None:
    gate = StepProbe(1)
    for _ in range(FIRST):
        gate.requested(begun=True)  # the last one closes it
    gate.open()
    passed = threading.Event()
    threading.Thread(target=lambda: (gate.enter(), passed.set()), daemon=True).start()
    assert passed.wait(60)


def test_closing_a_loader_ends_threads_that_stand_at_a_closed_gate() -> None:
    before = set(threading.enumerate())
    loader = Loader(Slow(), 4, seed=0, num_workers=2, engine="thread")
    for number, _ in enumerate(loader):
        if number == 2 * FIRST - 1:  # the gate has just been closed
            break
    loader.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
        assert not thread.is_alive()
