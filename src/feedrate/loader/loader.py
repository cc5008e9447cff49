"""`Loader`: a torch DataLoader whose batches are a function of (seed, epoch, position).

Without a seed it is exactly torch's DataLoader. Both classes are in one file, above 350 lines: the one creates the
other, and libraries that rebuild a loader look at the attributes of both.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset, default_convert

from feedrate.dataset.subset import ID_at, list_IDs
from feedrate.errors import UserError
from feedrate.loader.batch import Batch, BatchInfo, BatchRequest
from feedrate.loader.digest import OrderDigest
from feedrate.loader.engines import ENGINES, TRAITS, Engine, EngineTraits
from feedrate.loader.engines.auto import checked, choose, may_be_threads
from feedrate.loader.engines.scheduler import Scheduler
from feedrate.loader.epoch_iterator import DataIterator, EpochIterator
from feedrate.loader.fetcher import BatchFetcher
from feedrate.loader.order import Order, Plan
from feedrate.loader.report import Report
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


class Loader(DataLoader[T_co]):
    """DataLoader's arguments, and:

    Args:
        seed: None for exactly torch's DataLoader, results and errors alike. A number for batches that are a function
            of (seed, epoch, position), whatever the workers; see SeededLoader.
        engine: with a seed, what the workers are: 'thread', 'process', or 'auto' for the better of the two by a short
            measurement. Without workers it is 'inline'. The batches are the same.
        content_digest: with a seed, also hash the content of each batch.
        rank, world_size: with a seed, take the rank-th contiguous part of each global batch of
            `batch_size * world_size` samples.

    Raises:
        UserError: an argument that contradicts the seed or the engine.
        SampleError: while iterating, naming the sample.
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

    def __getattr__(self, name: str) -> Any:
        text = f"{type(self).__name__!r} object has no attribute {name!r}"
        if self.seed is None and not name.startswith("_") and hasattr(SeededLoader, name):
            text = f"Loader.{name} needs a seed: without one this is torch's DataLoader; pass seed=0"
        raise AttributeError(text, name=name, obj=self)

    def start(self, check: Callable[[], None] | None = None) -> None:
        """With a seed, starts the workers and the first batches now; the next `iter()` takes them over.

        Call it before CUDA, tracking and other threads exist: forking is safe only then.

        Args:
            check: called when the engine is known and before workers start; it may raise.
        """

    def close(self, at_once: bool = False) -> None:
        """Ends the workers; `at_once`: in the middle of a sample. The next `iter()` starts new ones.

        Otherwise they end with the last reference to the loader. If that is found by Python's cyclic collector, each
        worker may take five seconds, since the collector closes torch's queues first.
        """
        self._iterator = None

    def set_epoch(self, epoch: int, then: int | None = FOLLOWING) -> None:
        """With a seed, the next `iter()` is epoch `epoch`; a position loaded for that epoch stays.

        Args:
            then: the epoch after it, of which persistent workers prefetch the first batches; None for none. Another one
                may follow all the same.
        """


# for inspect.signature(Loader)
Loader.__new__.__signature__ = inspect.signature(Loader.__init__)  # type: ignore[attr-defined]


class SeededLoader(Loader[T_co]):
    """What `Loader(..., seed=0)` creates.

    `iter()` begins the next epoch each time, and ends the iterator before it; `set_epoch` chooses another epoch. An
    epoch whose first batch was not requested comes again. `state_dict()` is the exact position, and `load_state_dict()`
    continues with the batch after it, with any number of workers and batch size. Whole batches are loaded where the
    dataset has `load_batch` (as TensorFiles has) or PyTorch's `__getitems__`, otherwise samples one by one.

    Attributes:
        engine: 'auto' until the first batches are loaded.
        sampler, batch_sampler: give the order that is delivered, see OrderSampler.
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
        self._wanted_engine, self.engine = engine, self._checked(engine)
        self._fetcher = self._new_fetcher()
        if inherited is None:
            sampler.part = self._batch * world_size, self._drop_last, rank, world_size
            sampler.digest = OrderDigest(self.list_IDs)
            sampler.digest.begin(sampler.order, 0)
        if content_digest and sampler.content is None:
            sampler.content = b""
        self._scheduler = Scheduler(dataset)
        self._set_step(1)
        self._engine: Engine | None = None
        self._settings = self._current()
        self._report = Report(self)
        self._started: EpochIterator | None = None

    # -----------------------------------------------------------------------------------------------------
    # iterating
    # -----------------------------------------------------------------------------------------------------

    def __iter__(self) -> Any:
        return DataIterator(self.batches(), self)

    def batches(self) -> EpochIterator:
        """As `iter()`, but gives each batch with its info, and leaves the report to the caller."""
        self._follow_sampler()
        started, self._started = self._started, None
        return started if started is not None and self._settings == self._current() else self._begin()

    def __len__(self) -> int:
        order = self.sampler.order
        if order.size != self._size():  # the dataset has grown since
            order = self.sampler.order_of(order.epoch)
        return len(self._plan(order, 0))

    def start(self, check: Callable[[], None] | None = None) -> None:
        self._follow_sampler()
        if self._started is None:
            self._started = self._begin(check)

    def close(self, at_once: bool = False) -> None:
        self._started = None
        self.sampler.iterators += 1
        if self._engine is not None:
            self._engine.close(now=at_once)

    @property
    def end(self) -> int:
        """The position after an epoch's last batch."""
        size, batch = self._size(), self._batch * self.world_size
        return size - size % batch if self._drop_last else size

    def set_epoch(self, epoch: int, then: int | None = FOLLOWING) -> None:
        epoch = whole_number("set_epoch: epoch", epoch, least=0)
        if then not in (None, FOLLOWING):
            then = whole_number("set_epoch: then", then, least=0)
        self._go_to(epoch)
        self.sampler.named, self.sampler.wanted = True, None
        self._set_step(None if then is None else 1 if then == FOLLOWING else then - epoch)

    def _follow_sampler(self) -> None:
        """Goes to the epoch that a library has chosen with `sampler.set_epoch`."""
        if self.sampler.wanted is not None:
            self._go_to(self.sampler.wanted)
            self.sampler.wanted = None

    def _go_to(self, epoch: int) -> None:
        sampler = self.sampler
        if epoch == sampler.epoch and not sampler.begun:
            return
        if sampler.loaded is not None and epoch == sampler.loaded["epoch"]:  # the rest of it, which may be empty
            self.load_state_dict(sampler.loaded)
            sampler.begun = False
        else:
            self._begin_epoch(epoch)

    def _begin_epoch(self, epoch: int) -> None:
        """To the start of an epoch."""
        sampler = self.sampler
        order = self._scheduler.known(sampler.order_of(epoch))
        sampler.digest.begin(order, sampler.position)
        sampler.move(order, 0)
        self._set_step(1)
        self._end_iterator()

    def _set_step(self, step: int | None) -> None:
        self._scheduler.step = step if self.persistent_workers else None

    def _end_iterator(self) -> None:
        self._started = None
        self.sampler.iterators += 1

    def _begin(self, check: Callable[[], None] | None = None) -> EpochIterator:
        self._apply_changes()
        sampler = self.sampler
        if sampler.begun:
            self._begin_epoch(sampler.epoch + 1)
        elif sampler.position == 0 and sampler.order.size != self._size():  # the dataset has grown since
            step = self._scheduler.step
            self._begin_epoch(sampler.epoch)
            self._set_step(step)
        self._end_iterator()
        plan = self._plan(sampler.order, sampler.position)
        sampled, name = None, type(self._library_sampler).__name__
        if self._library_sampler is not None:
            plan, sampled = skip_to(plan, iter(self._library_sampler), name)
        loaded: list[Batch] = []
        if self._engine is None:
            if not len(plan):  # no batch to choose an engine by
                inline = ENGINES["inline"](self._fetcher, self._scheduler)
                return EpochIterator(self, inline, iter(()), plan, sampler.iterators)
            choice = choose(self._fetcher, plan, self)
            self.engine, loaded = choice.engine, choice.batches
            self._settings = self._current()
            if check is not None:
                check()
            self._engine = ENGINES[self.engine](self._fetcher, self._scheduler)
        rest = replace(plan, start=loaded[-1].info.request.stop) if loaded else plan
        batches = self._engine.run(rest, self)
        if loaded:
            batches = _joined(loaded, batches)
        if sampled is not None:
            batches = as_sampled(batches, sampled, name)
        return EpochIterator(self, self._engine, batches, plan, sampler.iterators)

    # -----------------------------------------------------------------------------------------------------
    # settings
    # -----------------------------------------------------------------------------------------------------

    def _apply_changes(self) -> None:
        """Applies attributes that were set after construction, and a dataset that has grown.

        Raises:
            UserError: they contradict the seed or the engine.
        """
        late = {"generator": self.generator, "in_order": self.in_order}
        check_arguments(self.dataset, late, self.rank, self.world_size)
        for name, now in (("seed", self.seed), ("shuffle", vars(self).get("shuffle", self.sampler.shuffle))):
            if now != getattr(self.sampler, name):
                raise UserError(f"Loader: {name}={now} was set after construction; make another Loader for that order")
        self.sampler.part = self._batch * self.world_size, self._drop_last, self.rank, self.world_size
        before, current = self._settings, self._current()
        if current == before:
            return
        if current.engine != before.engine:
            self._wanted_engine = self.engine
        if replace(current, samples=before.samples) != before:
            self.engine = self._checked(self._wanted_engine)
        if (current.collate_fn, current.samples) != (before.collate_fn, before.samples):
            self._fetcher = self._new_fetcher()
            self.sampler.digest.list_IDs = self.list_IDs
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        self._settings = self._current()

    def _current(self) -> _Settings:
        return _Settings(
            self.engine,
            self._size(),
            self.collate_fn,
            (self.num_workers, self.prefetch_factor, self.pin_memory, self.timeout),
            (self.worker_init_fn, self.multiprocessing_context),
        )

    def _checked(self, engine: str) -> str:
        if not self.timeout <= threading.TIMEOUT_MAX:
            raise UserError(
                f"loader.timeout={self.timeout:g}: must be at most {threading.TIMEOUT_MAX:g} seconds; 0 waits for ever"
            )
        return checked(engine, self)

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

    # -----------------------------------------------------------------------------------------------------
    # about the loader and its batches
    # -----------------------------------------------------------------------------------------------------

    @property
    def traits(self) -> EngineTraits:
        """Of the engine."""
        return TRAITS[self.engine]

    @property
    def list_IDs(self) -> Sequence[str] | None:
        """IDs by index; None where the index is the ID."""
        return self._fetcher.list_IDs

    @property
    def threadable(self) -> bool:
        """Whether threads could load what is now loaded inline, as far as that is known after the first batch."""
        return not self.traits.prefetches and may_be_threads(self._fetcher, self)

    def tasks(self) -> list[tuple[int, int]]:
        """Process and thread ID of each living worker."""
        return self._engine.tasks() if self._engine is not None else []

    def named(self, request: BatchRequest) -> str:
        """The first IDs of a batch, for an error."""
        return self._fetcher.named(request)

    def IDs(self, info: BatchInfo) -> list[str]:
        """IDs of a batch's samples."""
        names = self._fetcher.list_IDs
        return [ID_at(names, index) for index in info.request.indices.tolist()]

    def order_digest(self, after: BatchInfo | None = None) -> str:
        """Digest of the IDs of all delivered samples, or of those up to a batch of the current epoch."""
        return self.sampler.digest.at(self._position(after))

    def content_digest(self) -> str | None:
        """Digest of the content of all delivered batches, None unless `content_digest` is on."""
        content = self.sampler.content
        return content.hex() if content is not None else None

    def report(self) -> Report:
        """Rates and waiting of the current epoch of `for data in loader`."""
        return self._report

    # -----------------------------------------------------------------------------------------------------
    # position
    # -----------------------------------------------------------------------------------------------------

    def state_dict(self, after: BatchInfo | None = None) -> dict[str, Any]:
        """The position after the last delivered batch, or after another one of this epoch; JSON-able."""
        sampler, position = self.sampler, self._position(after)
        content = after.content if after is not None else sampler.content
        return {
            "version": 1,
            "epoch": sampler.epoch,
            "position": position,
            "over": sampler.over if after is None else position >= self.end,
            **self._identity(),
            "digest": sampler.digest.state(position),
            "content": content.hex() if sampler.content is not None and content is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next `iter()` continues with the batch after that position.

        After an epoch's last batch nothing is left of it: `set_epoch` with its number gives no batch. Without
        `set_epoch` the next epoch follows; if the state was taken before the loop over the epoch had ended, an iterator
        without batches comes first.

        Raises:
            UserError: not a state, or one of another number of samples, seed or shuffle.
        """
        missing = {"epoch", "position", "digest"}.difference(state if isinstance(state, Mapping) else ())
        if missing:
            what = f"a {type(state).__name__} without {', '.join(sorted(missing))}"
            raise UserError(f"Loader: load_state_dict takes what state_dict() returned; this is {what}")
        for key, value in self._identity().items():
            if state.get(key) != value:
                raise UserError(
                    f"the loader's state was saved with {key}={state.get(key)}, this loader has {key}={value}; "
                    "the order would be another one, so use the same, or start a new run"
                )
        sampler, position = self.sampler, whole_number("load_state_dict: position", state["position"], least=0)
        order = sampler.order_of(whole_number("load_state_dict: epoch", state["epoch"], least=0))
        self._end_iterator()
        left = position < self._plan(order, position).end
        over = not left and (bool(state.get("over", True)) or position != self.end)
        sampler.move(order, position, over)
        sampler.digest.load(state["digest"], order)
        if sampler.content is not None:
            sampler.content = bytes.fromhex(state.get("content") or "")
        sampler.loaded, sampler.named = state, True
        self._set_step(1)

    def _position(self, after: BatchInfo | None) -> int:
        if after is None:
            return self.sampler.position
        if after.request.epoch != self.sampler.epoch:
            raise UserError(
                f"Loader: this batch is of epoch {after.request.epoch}, the loader is in epoch {self.sampler.epoch}; "
                "call this before the next epoch begins"
            )
        return after.request.stop

    def _identity(self) -> dict[str, Any]:
        return {"samples": self._size(), "seed": self.seed, "shuffle": self.sampler.shuffle}


@dataclass(frozen=True)
class _Settings:
    """Attributes that workers depend on and that may be changed after construction."""

    engine: str
    samples: int
    collate_fn: Any
    workers: tuple[Any, ...]
    processes: tuple[Any, ...]


def _joined(loaded: list[Batch], rest: Iterator[Batch]) -> Iterator[Batch]:
    """First the loaded batches, then the rest."""
    loaded.reverse()
    while loaded:
        yield loaded.pop()
    yield from rest
