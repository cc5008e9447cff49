"""A DataLoader whose batches are a function of (seed, epoch, position)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset, default_convert

from feedrate.dataset.subset import list_IDs
from feedrate.errors import UserError
from feedrate.loader.batch import Batch, BatchInfo
from feedrate.loader.digest import OrderDigest
from feedrate.loader.engines import ENGINES, TRAITS, Engine, EngineTraits
from feedrate.loader.engines.auto import checked, choose, unfit_for_threads
from feedrate.loader.engines.engine import RequestSampler
from feedrate.loader.epoch_iterator import EpochIterator
from feedrate.loader.fetcher import BatchFetcher
from feedrate.loader.order import Order, Plan
from feedrate.loader.report import DataIterator, Report
from feedrate.loader.sampler import (
    InOrderSampler,
    OrderSampler,
    as_sampled,
    check_arguments,
    inherited_order,
    skip_to,
    whole_number,
)

T_co = TypeVar("T_co", covariant=True)
FOLLOWING = -1  # the next epoch number
_SIGNATURE = inspect.signature(DataLoader.__init__)
_WORKERS = ("engine", "num_workers", "prefetch_factor", "pin_memory", "timeout", "worker_init_fn",
            "multiprocessing_context")  # attributes that decide how workers are started  # fmt: skip


class Loader(DataLoader[T_co]):
    """DataLoader's arguments, and:

    Args:
        seed: None for exactly torch's DataLoader, results and errors alike. A number for batches that are a function
            of (seed, epoch, position), whatever the workers; see SeededLoader.
        engine: what the workers are: 'thread', 'process', or 'auto' for the better of the two by a short measurement.
        content_digest: also hash the content of each batch.
        rank, world_size: take the rank-th contiguous part of each global batch of `batch_size * world_size` samples.
    """

    seed: int | None = None

    def __new__(cls, *args: Any, seed: int | None = None, **kwargs: Any) -> Loader[T_co]:
        return super().__new__(SeededLoader if cls is Loader and seed is not None else cls)

    def __init__(
        self,
        dataset: Dataset[T_co],
        *args: Any,
        seed: int | None = None,
        engine: str = "auto",
        content_digest: bool = False,
        rank: int = 0,
        world_size: int = 1,
        **kwargs: Any,
    ) -> None:
        # sets no attribute: libraries rebuild a loader by passing all of vars() to the constructor
        if seed is not None:
            raise UserError(f"{type(self).__name__}: seed is for feedrate.loader.SeededLoader, so extend that class")
        if content_digest or engine != "auto" or (rank, world_size) != (0, 1):
            raise UserError("Loader: engine, content_digest, rank and world_size need a seed; pass seed=0")
        super().__init__(dataset, *args, **kwargs)

    def start(self) -> None:
        """With a seed, starts the workers now; call it before CUDA and other threads exist, as forking is safe then."""

    def close(self, at_once: bool = False) -> None:
        """Ends the workers, `at_once` in the middle of a sample. The next `iter()` starts new ones."""
        self._iterator = None

    def set_epoch(self, epoch: int, then: int | None = FOLLOWING) -> None:
        """With a seed, the next `iter()` is that epoch; persistent workers prefetch of epoch `then`, None for none."""


# for inspect.signature(Loader)
Loader.__new__.__signature__ = inspect.signature(Loader.__init__)  # type: ignore[attr-defined]


class SeededLoader(Loader[T_co]):
    """What `Loader(..., seed=0)` creates.

    `iter()` begins the next epoch each time, and ends the iterator before it; `set_epoch` chooses another epoch. If no
    batch was requested, the next `iter()` repeats the epoch. `sampler` and `batch_sampler` give the order.
    """

    seed: int
    sampler: OrderSampler
    engine = "auto"

    def __init__(
        self,
        dataset: Dataset[T_co],
        *args: Any,
        seed: int | None = None,
        engine: str = "auto",
        content_digest: bool = False,
        rank: int = 0,
        world_size: int = 1,
        **kwargs: Any,
    ) -> None:
        if seed is None:
            raise UserError(f"{type(self).__name__}: needs a seed; pass seed=0, or use Loader for torch's DataLoader")
        arguments = _SIGNATURE.bind(self, dataset, *args, **kwargs).arguments
        del arguments["self"]
        self.seed = whole_number("seed", seed)
        rank, world_size = whole_number("rank", rank), whole_number("world_size", world_size)
        check_arguments(dataset, arguments, rank, world_size)
        inherited, self._batch, self._drop_last = inherited_order(arguments, dataset, self.seed)
        kind = OrderSampler if arguments.get("shuffle") else InOrderSampler
        sampler = kind(dataset, self.seed) if inherited is None else inherited
        if arguments.get("batch_sampler") is None:
            shuffle = arguments.get("sampler") is not None and arguments.get("shuffle")
            arguments |= {"sampler": sampler, "shuffle": shuffle}
        DataLoader.__init__(self, **arguments)
        vars(self)["sampler"] = sampler  # with a batch_sampler torch sets one of its own
        self._library_sampler: Any = arguments.get("batch_sampler")
        self.rank, self.world_size = rank, world_size
        self._wanted_engine, self.engine = engine, checked(engine, self)
        self._fetcher = self._new_fetcher()
        if inherited is None:
            sampler.part = self._batch * world_size, self._drop_last, rank, world_size
            sampler.digest = OrderDigest(self.list_IDs)
            sampler.digest.begin(sampler.order, 0)
        if content_digest and sampler.content is None:
            sampler.content = b""
        self._requests = RequestSampler(dataset)
        self._set_epoch_step(1)
        self._engine: Engine | None = None
        self._options = self._current()
        self._report = Report(self)
        self._started: EpochIterator | None = None

    def __iter__(self) -> Any:
        return DataIterator(self.batches(), self)

    def batches(self) -> EpochIterator:
        """Like `iter()`, but yields each Batch with its info, and does not write the report."""
        self._follow_sampler()
        started, self._started = self._started, None
        return started if started is not None and self._options == self._current() else self._begin()

    def __len__(self) -> int:
        return len(self._plan(self.sampler.order_of(0), 0))

    def start(self) -> None:
        self._follow_sampler()
        if self._started is None:
            self._started = self._begin()

    def close(self, at_once: bool = False) -> None:
        self._end_iterator()
        if self._engine is not None:
            self._engine.close(now=at_once)

    @property
    def end(self) -> int:
        """The position after an epoch's last batch."""
        size, batch = self._size(), self._batch * self.world_size
        return size - size % batch if self._drop_last else size

    def set_epoch(self, epoch: int, then: int | None = FOLLOWING) -> None:
        epoch = whole_number("set_epoch: epoch", epoch, least=0)
        self._go_to(epoch)
        self.sampler.named, self.sampler.wanted = True, None
        self._set_epoch_step(None if then is None else 1 if then == FOLLOWING else then - epoch)

    def _follow_sampler(self) -> None:
        """Goes to the epoch that a library has chosen with `sampler.set_epoch`."""
        if self.sampler.wanted is not None:
            self._go_to(self.sampler.wanted)
            self.sampler.wanted = None

    def _go_to(self, epoch: int) -> None:
        sampler = self.sampler
        if epoch == sampler.epoch and not sampler.begun:
            return
        if sampler.loaded is not None and epoch == sampler.loaded["epoch"]:  # its rest, which may be empty
            self.load_state_dict(sampler.loaded)
            sampler.begun = False
        else:
            self._begin_epoch(epoch)

    def _begin_epoch(self, epoch: int) -> None:
        """Moves to the start of an epoch."""
        sampler = self.sampler
        order = self._requests.known(sampler.order_of(epoch))
        sampler.digest.begin(order, sampler.position)
        sampler.move(order, 0)
        self._set_epoch_step(1)
        self._end_iterator()

    def _set_epoch_step(self, step: int | None) -> None:
        self._requests.epoch_step = step if self.persistent_workers else None

    def _end_iterator(self) -> None:
        self._started = None
        self.sampler.generation += 1

    def _begin(self) -> EpochIterator:
        self._apply_changes()
        sampler = self.sampler
        if sampler.begun:
            self._begin_epoch(sampler.epoch + 1)
        elif sampler.position == 0 and sampler.order.size != self._size():  # the dataset has grown since
            step = self._requests.epoch_step
            self._begin_epoch(sampler.epoch)
            self._set_epoch_step(step)
        self._end_iterator()
        plan = self._plan(sampler.order, sampler.position)
        sampled, name = None, type(self._library_sampler).__name__
        if self._library_sampler is not None:
            plan, sampled = skip_to(plan, iter(self._library_sampler), name)
        loaded: list[Batch] = []
        if self._engine is None:
            if not len(plan):  # no batch to choose an engine by
                inline = ENGINES["inline"](self._fetcher, self._requests)
                return EpochIterator(self, inline, iter(()), plan, sampler.generation)
            choice = choose(self._fetcher, plan, self)
            self.engine, loaded = choice.engine, choice.batches
            self._options = self._current()
            self._engine = ENGINES[self.engine](self._fetcher, self._requests)
        rest = replace(plan, start=loaded[-1].info.request.stop) if loaded else plan
        batches: Iterator[Batch] = chain(loaded, self._engine.run(rest, self))
        if sampled is not None:
            batches = as_sampled(batches, sampled, name)
        return EpochIterator(self, self._engine, batches, plan, sampler.generation)

    def _apply_changes(self) -> None:
        """Applies attributes that were set after construction, and a dataset that has grown."""
        late = {"generator": self.generator, "in_order": self.in_order}
        check_arguments(self.dataset, late, self.rank, self.world_size)
        for name, now in (("seed", self.seed), ("shuffle", vars(self).get("shuffle", self.sampler.shuffle))):
            if now != getattr(self.sampler, name):
                raise UserError(f"Loader: {name}={now} was set after construction; make another Loader for that order")
        self.sampler.part = self._batch * self.world_size, self._drop_last, self.rank, self.world_size
        changed = {name for name, value in self._current().items() if value != self._options[name]}
        if not changed:
            return
        if "engine" in changed:
            self._wanted_engine = self.engine
        if changed.intersection(_WORKERS):
            self.engine = checked(self._wanted_engine, self)
        self._fetcher = self._new_fetcher()
        self.sampler.digest.list_IDs = self.list_IDs
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        self._options = self._current()

    def _current(self) -> dict[str, Any]:
        """What workers depend on and may change after construction, by name."""
        data = {"samples": self._size(), "collate_fn": self.collate_fn}
        return data | {name: getattr(self, name) for name in _WORKERS}

    def _new_fetcher(self) -> BatchFetcher:
        names = list_IDs(self.dataset)
        if names is not None and len(names) != self._size():
            names = None  # not one ID for each index: the indices are the IDs
        batched = self.batch_sampler is not None
        return BatchFetcher(self.dataset, self.seed, names, self.collate_fn or default_convert, batched)

    def _plan(self, order: Order, start: int) -> Plan:
        return Plan(order, start, self._batch * self.world_size, self._drop_last, self.rank, self.world_size)

    def _size(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getstate__(self) -> dict[str, Any]:
        """Without workers and iterators: a copy's next `iter()` delivers what this one's would."""
        return {**vars(self), "_fetcher": None, "_engine": None, "_started": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._fetcher = self._new_fetcher()

    @property
    def traits(self) -> EngineTraits:
        """The traits of the engine."""
        return TRAITS[self.engine]

    @property
    def list_IDs(self) -> Sequence[str] | None:
        """IDs by index; None where the index is the ID."""
        return self._fetcher.list_IDs

    @property
    def threadable(self) -> bool:
        """Whether threads could load what is now loaded inline; known after the first batch."""
        return not self.traits.prefetches and not unfit_for_threads(self._fetcher, self, self._fetcher.came_one_by_one)

    def worker_ids(self) -> list[tuple[int, int]]:
        """Process and thread ID of each living worker."""
        return self._engine.worker_ids() if self._engine is not None else []

    def IDs(self, info: BatchInfo) -> list[str]:
        """IDs of a batch's samples."""
        return [self._fetcher.errors.ID(index) for index in info.request.indices.tolist()]

    def order_digest(self, after: BatchInfo | None = None) -> str:
        """Digest of the IDs of all delivered samples, or those up to a batch of this epoch; 64 hexadecimal digits."""
        return self.sampler.digest.at(self.sampler.position_after(after))

    def content_digest(self) -> str | None:
        """Digest of the content of all delivered batches, None unless `content_digest` is on."""
        content = self.sampler.content
        return content.hex() if content is not None else None

    def report(self) -> Report:
        """Rates and waiting of the current epoch of `for data in loader`."""
        return self._report

    def state_dict(self, after: BatchInfo | None = None) -> dict[str, Any]:
        """The position after the last delivered batch, or after another one of this epoch; JSON-able."""
        return self.sampler.state(after, self.end)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next `iter()` continues with the batch after that position, with any workers and batch size.

        A state taken after an epoch's last batch, but within the loop, gives an iterator without batches first. Raises
        UserError for what is no state, or one of another order.
        """
        self.sampler.check(state)
        order, position = self.sampler.order_of(state["epoch"]), state["position"]
        self._end_iterator()
        left = position < self._plan(order, position).end
        over = not left and (bool(state.get("over", True)) or position != self.end)
        self.sampler.load(state, order, over)
        self._set_epoch_step(1)
