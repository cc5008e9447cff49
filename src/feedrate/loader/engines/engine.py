"""What an engine is: it turns batch requests into batches, in order."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, TypeVar

import torch
from torch.utils.data import DataLoader, Sampler
from torch.utils.data._utils.pin_memory import pin_memory

from feedrate.dataset.time_limit import within
from feedrate.loader.batch import Batch
from feedrate.loader.fetcher import BatchFetcher
from feedrate.loader.order import BatchRequest, Order, Plan
from feedrate.system.device import has_streams
from feedrate.timing.engine_traits import EngineTraits

T = TypeVar("T")


class RequestSampler(Sampler[Any]):
    """Yields the requests of `plan`, then of the next epochs, so that small ones do not stall at their start."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset  # only its length is used, read again for each epoch
        self.plan: Plan | None = None  # of the current epoch
        self.epoch_step: int | None = None  # from an epoch to the one prefetched next, 0 repeats it; None for none
        self._ahead: deque[Plan] = deque()  # epochs whose requests were issued before the epoch has begun
        self._due = False  # whether batches of the current epoch are outstanding

    def __iter__(self) -> Iterator[BatchRequest]:
        assert self.plan is not None
        self._ahead = deque()
        return self._from(self.plan, self._ahead)

    def _from(self, plan: Plan, ahead: deque[Plan]) -> Iterator[BatchRequest]:
        while True:
            yield from plan
            if self.epoch_step is None:
                return
            old = plan.order
            order = Order(len(self._dataset), old.seed, old.epoch + self.epoch_step, old.shuffle)
            plan = replace(plan, order=order, start=0)
            if not len(plan):
                return
            ahead.append(plan)

    def known(self, order: Order) -> Order:
        """The equal order of an epoch that is prefetched, which has computed positions already; otherwise `order`."""
        return self._ahead[0].order if self._ahead and self._ahead[0].order == order else order

    def begin(self, plan: Plan) -> bool:
        """Begins an epoch. True if its first batch is the next one that the running engine delivers."""
        continues = not self._due and bool(self._ahead) and self._ahead[0] == plan
        if continues:
            self._ahead.popleft()
        self.plan, self._due = plan, True
        return continues

    def end(self) -> None:
        """To be called when the epoch's last batch was delivered."""
        self._due = False


class Engine:
    """Loads the batches that are requested; persistent workers continue into the next epoch."""

    traits: ClassVar[EngineTraits]

    def __init__(self, fetcher: BatchFetcher, requests: RequestSampler) -> None:
        self._fetcher, self._requests = fetcher, requests
        self._persistent: Any = None  # iterator that continues into the next epoch
        self._running: weakref.ref[Any] | None = None  # weak: its workers end with the user's last reference to it

    @property
    def running(self) -> Any:
        """The iterator whose workers may be alive, or None."""
        return self._running() if self._running is not None else None

    def run(self, plan: Plan, loader: DataLoader[Any]) -> Iterator[Batch]:
        """Batches from the plan's first one on; prefetching begins at once. `loader` is the user's DataLoader."""
        continues = self._requests.begin(plan)
        if self._persistent is not None and continues:
            self.resumed()
            return self._persistent  # type: ignore[no-any-return]
        batches = self.start(loader)  # if it referred to `loader`, a cycle, workers would end with the collector only
        self._persistent = batches if loader.persistent_workers else None
        self._running = weakref.ref(batches)
        return batches

    def start(self, loader: DataLoader[Any]) -> Iterator[Batch]:
        """Ends earlier workers, starts new ones for the requests of `self._requests`, and returns their batches.

        What is returned must allow weak references, and must not refer to `loader`.
        """
        raise NotImplementedError

    def resumed(self) -> None:
        """Called when persistent workers continue with the next epoch."""

    def detect_lost_worker(self, call: Callable[[], T]) -> T:
        """Returns `call()`, which waits for workers; raises LostWorker if one of them has died."""
        return call()

    def worker_ids(self) -> list[tuple[int, int]]:
        """Process and thread ID of each living worker."""
        return []

    def idle(self) -> None:
        """Called when the epoch's last batch was delivered: no batch is requested for a while."""

    def close(self, now: bool = False) -> None:
        """Ends the workers; with `now` without waiting for the samples that they are loading."""


class Inline(Engine):
    """Loads each batch when it is requested; with a timeout in a thread, as the main one cannot be interrupted."""

    traits = EngineTraits(shares_interpreter=True, has_processes=False, prefetches=False)

    def run(self, plan: Plan, loader: DataLoader[Any]) -> Iterator[Batch]:
        self._requests.begin(plan)
        device, timeout, load = pin_device(loader), loader.timeout, self._fetcher.load
        batches: Iterator[Batch]
        if timeout:
            batches = (within(timeout, partial(load, request), "a batch") for request in self._requests)
        else:
            batches = map(load, self._requests)
        return batches if device is None else (pinned(batch, device) for batch in batches)


def pin_device(loader: DataLoader[Any]) -> str | None:
    """The `device` argument of `pinned` for a loader's batches; None where they are not pinned."""
    device = torch.accelerator.current_accelerator() if loader.pin_memory else None
    able = device is not None and has_streams(device) and torch.accelerator.is_available()
    return loader.pin_memory_device if able else None


def pinned(batch: Batch, device: str | None) -> Batch:
    """The batch in page-locked memory, allocated in the context of a device, "" for the current one."""
    if device is None or batch.info.error is not None:
        return batch
    with torch.accelerator.device_index(torch.device(device).index if device else None):
        return Batch(pin_memory(batch.data), batch.info)
