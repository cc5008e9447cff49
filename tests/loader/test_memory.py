"""Reused memory is overwritten only once its batch is freed, and does not grow with the number of batches."""

from __future__ import annotations

import ctypes
import gc
from collections import deque
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch.utils.data import Dataset

from feedrate.loader import Batch, Loader, ToDevice
from feedrate.loader.transfer import CopyStream
from loader.memory_use import own_bytes
from loader.memory_use import workers as own_workers
from loader.test_buffers import Numbered

ENGINES = ("inline", "thread", "process")


class LateStream(CopyStream):
    """Stands in for a device that carries out a copy at the last moment that it is given, when it is waited for.

    Like a device, it reads the memory at that address, even if that was freed and is used for something else.
    """

    def __init__(self) -> None:
        pass

    def issue(self, host: Batch) -> tuple[Batch, Any]:
        memory = (ctypes.c_char * host.X.nbytes).from_address(host.X.data_ptr())
        X = torch.full_like(host.X, -1)
        return Batch((X, host.y.clone()), host.info), LateEvent(memory, X)

    def hand_over(self, batch: Batch, done: Any) -> None:
        pass


class LateEvent:
    def __init__(self, memory: Any, target: torch.Tensor) -> None:
        self._memory, self._target = memory, target

    def synchronize(self) -> None:
        found = np.frombuffer(self._memory, dtype=self._target.numpy().dtype)
        self._target.copy_(torch.from_numpy(found).view(self._target.shape))


@pytest.mark.usefixtures("no_workers_left", "no_threads_left")
@pytest.mark.parametrize("engine", ENGINES)
def test_memory_is_not_filled_again_before_a_late_copy_from_it_is_complete(engine: str) -> None:
    workers = 0 if engine == "inline" else 2
    settings = {"engine": engine, "num_workers": workers, "persistent_workers": workers > 0}
    loader, places = Loader(Numbered(), 4, seed=0, **settings), set()
    for _ in range(3):
        transfer = ToDevice(loader, torch.device("cpu"), check=lambda host: places.add(host.X.data_ptr()))
        for batch in list(transfer._ahead(loader.batches(), LateStream())):
            assert torch.equal(batch.X, batch.y[:, None, None, None].expand_as(batch.X).int())
    assert len(places) < 3 * 24  # of the batches: it was used again
    loader.close()


@pytest.mark.usefixtures("no_workers_left", "no_threads_left")
@pytest.mark.parametrize("engine", ENGINES)
def test_memory_that_the_user_holds_for_long_is_not_filled_again(engine: str) -> None:
    workers = 0 if engine == "inline" else 2
    settings = {"engine": engine, "num_workers": workers, "persistent_workers": workers > 0}
    loader = Loader(Numbered(), 4, seed=0, **settings)
    held: deque[Any] = deque(maxlen=9)
    for _ in range(2):
        for X, y in loader:
            held.append((X[1:], y))
            for part, names in held:
                assert torch.equal(part, names[1:, None, None, None].expand_as(part).int())
    loader.close()


class Pictures(Dataset[Any]):
    """150 KB each."""

    def __len__(self) -> int:
        return 64 * 6

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((3, 224, 224), index % 256, dtype=torch.uint8), index


@pytest.mark.slow
@pytest.mark.usefixtures("no_workers_left", "no_threads_left")
@pytest.mark.parametrize("engine", ENGINES)
def test_memory_stays_the_same_over_twenty_epochs(engine: str) -> None:
    workers = 0 if engine == "inline" else 2
    loader = Loader(Pictures(), 64, True, seed=0, engine=engine, num_workers=workers, persistent_workers=workers > 0)
    used = []
    for _ in range(2):  # batches that are held for a while make the pool as large as it may become
        deque(loader, maxlen=4)
    for _ in range(20):
        for X, _y in loader:
            X.sum()
        del X, _y
        gc.collect()
        used.append(own_bytes([psutil.Process(), *own_workers()], "Pss_Anon", "Pss_Shmem"))
    loader.close()
    assert max(used) <= 1.05 * used[0], [round(value / 1e6) for value in used]
