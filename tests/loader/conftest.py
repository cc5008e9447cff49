"""Fixtures of the loader's tests: one torch thread, and checks that no worker and no thread is left behind."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Collection, Iterator

import psutil
import pytest
import torch

from feedrate.loader.engines.receiver import NAME


@pytest.fixture(autouse=True, scope="package")
def one_torch_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def workers() -> list[psutil.Process]:
    """Processes that this one has started, other than the helpers of Python's multiprocessing."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            command = " ".join(child.cmdline())
            if child.status() != psutil.STATUS_ZOMBIE and not any(
                helper in command and child.ppid() == psutil.Process().pid
                for helper in ("resource_tracker", "multiprocessing.forkserver")
            ):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def wait_until_loaders_are_gone(others: Collection[threading.Thread] = ()) -> None:
    """Waits until no thread of an ended loader is left: it may still close a pipe, or hold memory of a batch.

    For 15 seconds at most, as the thread of a loader that is still referenced stays idle.

    Args:
        others: threads that another test has left.
    """
    own, deadline = ("feedrate-loader", NAME, "QueueFeeder"), time.monotonic() + 15
    while (
        any(t.name.startswith(own) and t not in others for t in threading.enumerate()) and time.monotonic() < deadline
    ):
        gc.collect()
        time.sleep(0.01)


@pytest.fixture
def no_threads_left() -> Iterator[None]:
    """Fails the test if, a minute after its end, one of its loaders' threads still runs."""
    before = set(threading.enumerate())  # a test that failed may keep its loader
    yield
    deadline = time.monotonic() + 60
    while left := [t for t in set(threading.enumerate()) - before if t.name.startswith("feedrate-loader")]:
        gc.collect()
        assert time.monotonic() < deadline, f"threads left behind: {left}"
        time.sleep(0.01)


@pytest.fixture
def no_workers_left() -> Iterator[None]:
    """Fails the test if, a minute after its end, one of its workers still runs."""
    before = {process.pid for process in workers()}
    yield
    deadline = time.monotonic() + 60
    while left := [process for process in workers() if process.pid not in before]:
        gc.collect()
        assert time.monotonic() < deadline, f"workers left behind: {left}"
        time.sleep(0.05)
