"""`Loader`: a torch DataLoader whose batches are a function of (seed, epoch, position).

Fetching, workers and collation are torch's; order, randomness, position, digest and clock are ours.
"""

from __future__ import annotations

import inspect
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Sampler, default_convert

from feedrate.dataset.build import list_IDs
from feedrate.dataset.ids import IDs
from feedrate.errors import SampleError, UserError
from feedrate.loader.digest import OrderDigest, content_hash, nbytes
from feedrate.loader.fetch import Receipt, Samples, Ticket, passed_on
from feedrate.loader.order import Order, rank_part
from feedrate.loader.report import Report

_SIGNATURE = inspect.signature(DataLoader.__init__)


class Loader(DataLoader[Any]):
    """DataLoader's arguments, and:

    Args:
        seed: None for exactly torch's DataLoader, results and errors alike. A number for an order of our own on a
            map-style dataset: batches are then a function of (seed, epoch, position), whatever the workers.
        content_digest: with a seed, also hash what the batches hold; costs a pass over every batch.
        rank, world_size: with a seed, take the rank-th contiguous part of each global batch of
            `batch_size * world_size` samples.

    With a seed, `iter()` goes on to the next epoch each time; `set_epoch` names another one. `state_dict()` is the
    exact position, and `load_state_dict()` goes on with the batch after it, with any number of workers and batch size.

    Raises:
        UserError: an argument that a seed leaves no room for.
        SampleError: while iterating, naming the sample.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *args: Any,
        seed: int | None = None,
        content_digest: bool = False,
        rank: int = 0,
        world_size: int = 1,
        **kwargs: Any,
    ) -> None:
        self.seed = seed
        if seed is None:
            super().__init__(dataset, *args, **kwargs)
            return
        given = _SIGNATURE.bind(self, dataset, *args, **kwargs).arguments
        _refuse(dataset, given, rank, world_size)
        super().__init__(dataset, *args, **kwargs)
        self.rank, self.world_size = rank, world_size
        self._shuffled = bool(given.get("shuffle"))
        self._content = b"" if content_digest else None
        IDs_ = list_IDs(dataset)
        self._digest = OrderDigest(IDs_)
        self._samples = Samples(
            dataset, seed, IDs_, _occurrence(IDs_), self.collate_fn or default_convert, self.batch_size is not None
        )
        self._tickets = _Tickets()
        self._inner: DataLoader[Any] | None = None
        self._next = (0, 0)  # epoch and position of the next iter()
        self._early: _Epoch | None = None
        self._order: Order | None = None
        self._last: Receipt | None = None
        self._at = 0
        self._report = Report(max(1, self.num_workers))

    # -----------------------------------------------------------------------------------------------------
    # iterating
    # -----------------------------------------------------------------------------------------------------

    def __iter__(self) -> Any:
        if self.seed is None:
            return super().__iter__()
        if self._early is not None:
            early, self._early = self._early, None
            return early
        return self._begin()

    def __len__(self) -> int:
        if self.seed is None:
            return super().__len__()
        size, batch = self._size(), self._global_batch()
        return size // batch if self.drop_last else -(-size // batch)

    def start(self) -> None:
        """Starts the workers and the first batches now; the next `iter()` takes them over.

        For the time before CUDA, tracking and other threads exist: forking is safe only then.
        """
        if self.seed is not None and self._early is None:
            self._early = self._begin()

    def close(self) -> None:
        """Ends the workers now; the next `iter()` starts new ones.

        Without it they end with the last reference to the loader. Where that is found by Python's cyclic collector, it
        closes the workers' queues before torch can say goodbye through them, and each worker takes five seconds.
        """
        if self.seed is None:
            self._iterator = None
        else:
            self._early = self._inner = None

    def set_epoch(self, epoch: int) -> None:
        """The next `iter()` is epoch `epoch`; a position that was loaded for that epoch stays."""
        if self.seed is None or epoch == self._next[0] or (self._early and self._early.epoch == epoch):
            return
        self._early = None
        self._next = (epoch, 0)

    def _begin(self) -> _Epoch:
        epoch, start = self._next
        assert self.seed is not None
        order = Order(self._size(), self.seed, epoch, self._shuffled)
        if self._order is None or self._order.epoch != epoch or start == 0:
            self._digest.begin(order, self._at)
        self._order, self._at, self._last = order, start, None
        self._next = (epoch + 1, 0)
        self._tickets.plan = (order, start, self._global_batch(), bool(self.drop_last), self.rank, self.world_size)
        self._report.begin(epoch)
        return _Epoch(self, iter(self._open()), epoch, start, self._end())

    def _open(self) -> DataLoader[Any]:
        """The private DataLoader that does the work; kept while its workers live on between epochs."""
        if self._inner is None or not self.persistent_workers:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about too many workers: said when this Loader was made
                self._inner = DataLoader(
                    self._samples,
                    batch_sampler=self._tickets,
                    num_workers=self.num_workers,
                    collate_fn=passed_on,
                    pin_memory=self.pin_memory,
                    timeout=self.timeout,
                    worker_init_fn=self.worker_init_fn,
                    multiprocessing_context=self.multiprocessing_context or self._start_method(),
                    # of its own: creating an iterator would otherwise draw from the global generator
                    generator=torch.Generator().manual_seed(0),
                    prefetch_factor=self.prefetch_factor,
                    persistent_workers=self.persistent_workers,
                )
        return self._inner

    def _start_method(self) -> str | None:
        """fork where it is safe: before any other thread, and before the device's runtime, is there."""
        if self.num_workers == 0 or sys.platform != "linux":
            return None
        device_in_use = torch.cuda.is_initialized() or (hasattr(torch, "xpu") and torch.xpu.is_initialized())
        # a notebook always has threads, and its classes cannot be imported by another process
        notebook = not hasattr(sys.modules["__main__"], "__file__")
        if device_in_use or (threading.active_count() > 1 and not notebook):
            return "forkserver"
        return "fork"

    def _end(self) -> int:
        """The position after the epoch's last batch."""
        size, batch = self._size(), self._global_batch()
        return size - size % batch if self.drop_last else size

    def _size(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def _global_batch(self) -> int:
        return (self.batch_size or 1) * self.world_size

    def _delivered(self, batch: Any, receipt: Receipt, wait_ns: int) -> None:
        self._last, self._at = receipt, receipt.ticket.stop
        if self._content is not None:
            self._content = content_hash(self._content, batch)
        self._report.add(wait_ns, receipt.load_ns, len(receipt.ticket.indices), nbytes(batch))

    # -----------------------------------------------------------------------------------------------------
    # what was delivered
    # -----------------------------------------------------------------------------------------------------

    @property
    def delivered(self) -> Receipt | None:
        """The receipt of the batch that was handed out last, None before the first."""
        return self._last if self.seed is not None else None

    def IDs(self, receipt: Receipt) -> list[str]:
        """IDs of the samples in a receipt's batch."""
        names = self._samples.list_IDs
        return [str(i) if names is None else names[i] for i in receipt.ticket.indices.tolist()]

    def order_digest(self, after: Receipt | None = None) -> str:
        """Digest over the IDs of every sample delivered so far, or up to a batch of the present epoch."""
        self._demand_seed("order_digest")
        return self._digest.at(after.ticket.stop if after else self._at)

    def content_digest(self) -> str | None:
        """Digest over what the batches held, None unless asked for."""
        return self._content.hex() if self._content is not None else None

    def report(self) -> Report:
        """Rates and waiting of the present epoch."""
        self._demand_seed("report")
        return self._report

    # -----------------------------------------------------------------------------------------------------
    # position
    # -----------------------------------------------------------------------------------------------------

    def state_dict(self, after: Receipt | None = None) -> dict[str, Any]:
        """The position after the batch handed out last (or after another one of this epoch); JSON-able."""
        self._demand_seed("state_dict")
        epoch = self._order.epoch if self._order else self._next[0]
        position = after.ticket.stop if after else self._at
        if self._early is not None or self._order is None:
            epoch, position = (self._early.epoch, self._early.first) if self._early else self._next
        return {
            "version": 1,
            "epoch": epoch,
            "position": position,
            **self._identity(),
            "digest": self._digest.state(position),
            "content": self.content_digest(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with the batch after that position at the next `iter()`.

        Raises:
            UserError: the state belongs to another number of samples, seed or shuffle.
        """
        self._demand_seed("load_state_dict")
        for key, value in self._identity().items():
            if state.get(key) != value:
                raise UserError(
                    f"the loader's state was saved with {key}={state.get(key)}, this loader has {key}={value}; "
                    "the order would be another one, so use the same, or start anew"
                )
        self._early = None
        epoch, position = int(state["epoch"]), int(state["position"])
        assert self.seed is not None
        self._order = Order(self._size(), self.seed, epoch, self._shuffled)
        self._digest.load(state["digest"], self._order)
        self._at, self._last = position, None
        if self._content is not None and state.get("content"):
            self._content = bytes.fromhex(state["content"])
        self._next = (epoch, position) if position < self._end() else (epoch + 1, 0)

    def _identity(self) -> dict[str, Any]:
        return {"samples": self._size(), "seed": self.seed, "shuffle": self._shuffled}

    def _demand_seed(self, name: str) -> None:
        if self.seed is None:
            raise UserError(f"Loader.{name}() needs a seed: without one this is torch's DataLoader; pass seed=0")


class _Epoch(Iterator[Any]):
    """One pass, from a position on."""

    def __init__(self, loader: Loader, inner: Iterator[Any], epoch: int, first: int, end: int) -> None:
        self._loader, self._inner = loader, inner
        self.epoch, self.first, self._at, self._end = epoch, first, first, end

    def __next__(self) -> Any:
        begin = time.perf_counter_ns()
        try:
            batch, receipt = next(self._inner)
        except StopIteration:
            assert self._at == self._end, f"{self._at} of {self._end} samples delivered"
            raise
        except RuntimeError as error:
            raise _worker_lost(error) from error
        assert receipt.ticket.start == self._at, (receipt.ticket, self._at)
        if receipt.error is not None:
            raise _with_cause(receipt.error)
        self._at = receipt.ticket.stop
        self._loader._delivered(batch, receipt, time.perf_counter_ns() - begin)
        return batch

    def __len__(self) -> int:
        return len(self._loader)


class _Tickets(Sampler[Any]):
    """The inner loader's batch sampler: cuts the order into tickets."""

    def __init__(self) -> None:
        self.plan: tuple[Order, int, int, bool, int, int] | None = None

    def __iter__(self) -> Iterator[Ticket]:
        assert self.plan is not None
        return self._cut(*self.plan)  # the plan of now: the generator runs on while the next epoch is planned

    @staticmethod
    def _cut(order: Order, start: int, batch: int, drop_last: bool, rank: int, world_size: int) -> Iterator[Ticket]:
        while start < order.size:
            stop = min(start + batch, order.size)
            if drop_last and stop - start < batch:
                return
            first, last = rank_part(start, stop, rank, world_size)
            yield Ticket(order.epoch, start, stop, order.indices(first, last))
            start = stop


class _RemoteTraceback(Exception):
    """Carries a worker's traceback as text, for HYDRA_FULL_ERROR=1 and notebooks."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _with_cause(error: SampleError) -> SampleError:
    if error.cause:
        error.__cause__ = _RemoteTraceback(error.cause)
    return error


def _worker_lost(error: RuntimeError) -> Exception:
    """torch's error for a worker that died or hung, with what usually helps."""
    text = str(error).splitlines()[0]
    if "timed out" in text:
        return UserError(
            f"loader.timeout: no batch came in time ({text})\n"
            "A sample hangs, or loader.timeout is too short (0 waits for ever)"
        )
    if "killed by signal" in text or "exited unexpectedly" in text:
        return UserError(
            f"{text}\nWhere the system kills a worker, memory ran out: lower loader.num_workers, "
            "loader.prefetch_factor or loader.batch_size"
        )
    return error


def _refuse(dataset: Dataset[Any], given: dict[str, Any], rank: int, world_size: int) -> None:
    if isinstance(dataset, IterableDataset):
        raise UserError("Loader: seed is for map-style datasets, an iterable dataset has its own order; pass seed=None")
    for name, kind in (("sampler", Sampler), ("batch_sampler", BatchSampler), ("generator", torch.Generator)):
        if given.get(name) is not None:
            raise UserError(f"Loader: seed fixes the order, so {name} ({kind.__name__}) cannot be used; pass seed=None")
    if given.get("in_order") is False:
        raise UserError("Loader: seed fixes the order, so in_order=False cannot be used; pass seed=None")
    if not 0 <= rank < world_size:
        raise UserError(f"Loader: rank={rank} must be at least 0 and below world_size={world_size}")


def _occurrence(names: Sequence[str] | None) -> np.ndarray | None:
    """For each index how often its ID stands before it; None where no ID stands twice, as in every catalog."""
    if not isinstance(names, (list, tuple, IDs)) or len(set(names)) == len(names):
        return None
    counts: dict[str, int] = {}
    result = np.empty(len(names), dtype=np.int64)
    for index, name in enumerate(names):
        result[index] = counts[name] = counts.get(name, -1) + 1
    return result
