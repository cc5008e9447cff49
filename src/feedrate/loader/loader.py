"""`Loader`: a torch DataLoader whose batches are a function of (seed, epoch, position).

Fetching, workers and collation are torch's; order, randomness, position, digest and clock are ours. Without a seed it
is torch's DataLoader and nothing else.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset, default_convert

from feedrate.dataset.build import list_IDs
from feedrate.errors import UserError
from feedrate.loader.batch import BatchInfo, BatchRequests
from feedrate.loader.digest import OrderDigest, content_hash
from feedrate.loader.engines.auto import checked, choose, may_be_threads
from feedrate.loader.engines.inline import Inline
from feedrate.loader.engines.processes import Workers, helpers
from feedrate.loader.engines.threads import Threads
from feedrate.loader.epoch_iterator import EpochIterator
from feedrate.loader.fetcher import BatchFetcher
from feedrate.loader.order import Order, Plan
from feedrate.loader.rebuilt import as_given, order_given, part_given, refuse
from feedrate.loader.report import Report, setup_of
from feedrate.loader.sampler import InOrderSampler, OrderSampler, whole_number
from feedrate.timing import EpochTimes
from feedrate.timing.epoch_times import Setup
from feedrate.timing.stages import clock_ns

T_co = TypeVar("T_co", covariant=True)
FOLLOWING = -1  # the next epoch number
_ENGINES: dict[str, type[Inline] | type[Threads] | type[Workers]] = {
    "inline": Inline,
    "thread": Threads,
    "process": Workers,
}
_SIGNATURE = inspect.signature(DataLoader.__init__)


class Loader(DataLoader[T_co]):
    """DataLoader's arguments, and:

    Args:
        seed: None for exactly torch's DataLoader, results and errors alike. A number for an order of our own on a
            map-style dataset, see SeededLoader: batches are then a function of (seed, epoch, position), whatever the
            workers.
        engine: with a seed, what the workers are: 'thread', 'process', or 'auto' for the better of the two by a short
            measurement. Without workers it is 'inline'. What is delivered is the same.
        content_digest: with a seed, also hash what the batches hold, batch by batch; costs a pass over each.
        rank, world_size: with a seed, take the rank-th contiguous part of each global batch of
            `batch_size * world_size` samples.

    Raises:
        UserError: an argument that a seed leaves no room for, or that the engine cannot use.
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

    # ---- without a seed these do nothing, so that one program serves both kinds -----------------------------

    @property
    def engine(self) -> str:
        return "process" if self.num_workers else "inline"

    def start(self, check: Callable[[], None] | None = None) -> None:
        """With a seed, starts the workers and the first batches now; the next `iter()` takes them over.

        For the time before CUDA, tracking and other threads exist: forking is safe only then.

        Args:
            check: called when the engine is known, before any worker is there; it may raise.
        """

    def close(self, at_once: bool = False) -> None:
        """Ends the workers now, or `at_once`, in the middle of a sample; the next `iter()` starts new ones.

        Without it they end with the last reference to the loader. Where that is found by Python's cyclic collector, it
        closes the workers' queues before torch can say goodbye through them, and each worker takes five seconds.
        """
        self._iterator = None

    def set_epoch(self, epoch: int, then: int | None = FOLLOWING) -> None:
        """With a seed, the next `iter()` is epoch `epoch`; a position that was loaded for that epoch stays.

        Args:
            then: the epoch after it, of which persistent workers make the first batches while the last ones of this one
                are used; None for none. Another one may be asked for all the same.
        """

    @property
    def delivered(self) -> BatchInfo | None:
        """With a seed, the batch info of the batch that was handed out last, None before the first."""
        return None

    @property
    def list_IDs(self) -> Sequence[str] | None:
        """With a seed, IDs by index; None where the index is the ID."""
        return None

    @property
    def threadable(self) -> bool:
        """Whether threads can be trusted with what this loader has loaded without workers."""
        return False

    def tasks(self) -> list[tuple[int, int]]:
        """With a seed, process and thread of each worker that lives now, as the system numbers them."""
        return []

    def helpers(self) -> list[tuple[int, int]]:
        """The same of threads in this process that take batches over from worker processes, whichever loader's."""
        return []

    def account_kept_by(self, times: Callable[[], EpochTimes]) -> None:
        """The training loop writes the account of the present pass, which `times` gives; report() reads it there."""


# what inspect.signature(Loader) tells, here and in older Pythons
Loader.__new__.__signature__ = inspect.signature(Loader.__init__)  # type: ignore[attr-defined]


class SeededLoader(Loader[T_co]):
    """What `Loader(..., seed=0)` makes.

    `iter()` goes on to the next epoch each time, and ends the pass before it; `set_epoch` names another one. An epoch
    whose first batch was not asked for comes again. `state_dict()` is the exact position, and `load_state_dict()` goes
    on with the batch after it, with any number of workers and batch size. The dataset is asked for whole batches where
    it has `load_batch` (as TensorFiles has) or PyTorch's `__getitems__`, and otherwise sample by sample.

    Attributes:
        engine: 'auto' until the first batches are loaded.
        sampler, batch_sampler: give the order that is delivered, see OrderSampler. Passed to another SeededLoader of
            the dataset, as by libraries that rebuild loaders, they make it go on from the same position.
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
        given = _SIGNATURE.bind(self, dataset, *args, **kwargs).arguments
        del given["self"]
        self.seed = whole_number("seed", seed)
        rank, world_size = whole_number("rank", rank), whole_number("world_size", world_size)
        refuse(dataset, given, rank, world_size)
        order, self._batch, self._drop_last = order_given(given, dataset, self.seed)
        fresh = order is None
        if order is None:
            order = (OrderSampler if given.get("shuffle") else InOrderSampler)(dataset, self.seed)
        if given.get("batch_sampler") is None:
            given |= {"sampler": order, "shuffle": given.get("sampler") is not None and given.get("shuffle")}
        DataLoader.__init__(self, **given)
        vars(self)["sampler"] = order  # with a batch_sampler torch sets one of its own
        self._foreign: Any = given.get("batch_sampler")
        self.rank, self.world_size = rank, world_size
        self._wanted, self.engine = engine, self._checked(engine)
        self._samples = self._new_samples()
        if fresh:
            order.part = self._batch * world_size, self._drop_last, rank, world_size
            order.digest = OrderDigest(self.list_IDs)
            order.digest.begin(order.order, 0)
        if content_digest and order.content is None:
            order.content = b""
        self._requests = BatchRequests(dataset)
        self._expect(1)
        self._engine: Inline | Threads | Workers | None = None
        self._settings = self._current()
        self._report = Report(self._setup())
        self._early: EpochIterator | None = None

    # -----------------------------------------------------------------------------------------------------
    # iterating
    # -----------------------------------------------------------------------------------------------------

    def __iter__(self) -> Any:
        self._heed()
        early, self._early = self._early, None
        return early if early is not None and self._settings == self._current() else self._begin()

    def __len__(self) -> int:
        order = self.sampler.order
        if order.size != self._size():  # the dataset has grown since
            order = self.sampler.order_of(order.epoch)
        return len(self._plan(order, 0))

    def start(self, check: Callable[[], None] | None = None) -> None:
        self._heed()
        if self._early is None:
            self._early = self._begin(check)

    def close(self, at_once: bool = False) -> None:
        self._early = None
        self.sampler.passes += 1
        if self._engine is None:
            return
        if at_once:
            self._engine.kill()
        self._engine.end()

    @property
    def end(self) -> int:
        """The position after an epoch's last batch."""
        size, batch = self._size(), self._batch * self.world_size
        return size - size % batch if self._drop_last else size

    def set_epoch(self, epoch: int, then: int | None = FOLLOWING) -> None:
        epoch = whole_number("set_epoch: epoch", epoch, least=0)
        if then not in (None, FOLLOWING):
            then = whole_number("set_epoch: then", then, least=0)
        self._to(epoch)
        self.sampler.named, self.sampler.asked = True, None
        self._expect(None if then is None else 1 if then == FOLLOWING else then - epoch)

    def _heed(self) -> None:
        """To the epoch that a library has named by `sampler.set_epoch`."""
        if self.sampler.asked is not None:
            self._to(self.sampler.asked)
            self.sampler.asked = None

    def _to(self, epoch: int) -> None:
        place = self.sampler
        if epoch == place.epoch and not place.begun:
            return
        if place.loaded is not None and epoch == place.loaded["epoch"]:  # what is left of it, which may be nothing
            self.load_state_dict(place.loaded)
            place.begun = False
        else:
            self._move(epoch)

    def _expect(self, step: int | None) -> None:
        self._requests.step = step if self.persistent_workers else None

    def _move(self, epoch: int) -> None:
        """To the start of an epoch."""
        place = self.sampler
        order = self._requests.known(place.order_of(epoch))
        place.digest.begin(order, place.at)
        place.moved(order, 0)
        self._expect(1)
        self._end_pass()

    def _end_pass(self) -> None:
        self.sampler.last, self._early = None, None
        self.sampler.passes += 1

    def _begin(self, check: Callable[[], None] | None = None) -> EpochIterator:
        self._settle()
        place = self.sampler
        if place.begun:
            self._move(place.epoch + 1)
        elif place.at == 0 and place.order.size != self._size():  # the dataset has grown since
            step = self._requests.step
            self._move(place.epoch)
            self._expect(step)
        self._end_pass()
        plan = self._plan(place.order, place.at)
        given = iter(self._foreign) if self._foreign is not None else None
        if given is not None:
            plan, given = part_given(plan, given, type(self._foreign).__name__)
        made: list[Any] = []
        if self._engine is None:
            if not len(plan):  # nothing to choose an engine by
                return EpochIterator(self, Inline(self._samples, self._requests), iter(()), plan, place.passes)
            choice = choose(self._samples, plan, self)
            self.engine, made = choice.engine, choice.made
            self._settings = self._current()
            if check is not None:
                check()
            self._engine = _ENGINES[self.engine](self._samples, self._requests)
        rest = replace(plan, start=made[-1][1].request.stop) if made else plan
        batches = self._engine.begin(rest, self)
        self._report.begin(place.epoch, self._setup(), self.tasks())
        if made:
            batches = _joined(made, batches)
        if given is not None:
            batches = as_given(batches, given, type(self._foreign).__name__)
        return EpochIterator(self, self._engine, batches, plan, place.passes)

    def _settle(self) -> None:
        """Takes up what was set after construction, and a dataset that has grown.

        Raises:
            UserError: it does not go with a seed, or with the engine.
        """
        late = {"generator": self.generator, "in_order": self.in_order}
        refuse(self.dataset, late, self.rank, self.world_size)
        for name, now in (("seed", self.seed), ("shuffle", vars(self).get("shuffle", self.sampler.shuffle))):
            if now != getattr(self.sampler, name):
                raise UserError(f"Loader: {name}={now} was set after construction; make another Loader for that order")
        self.sampler.part = self._batch * self.world_size, self._drop_last, self.rank, self.world_size
        before, now = self._settings, self._current()
        if now == before:
            return
        if now.engine != before.engine:
            self._wanted = self.engine
        if replace(now, samples=before.samples) != before:
            self.engine = self._checked(self._wanted)
        if (now.collate_fn, now.samples) != (before.collate_fn, before.samples):
            self._samples = self._new_samples()
            self.sampler.digest.list_IDs = self.list_IDs
        if self._engine is not None:
            self._engine.end()
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

    def _new_samples(self) -> BatchFetcher:
        names = list_IDs(self.dataset)
        if names is not None and len(names) != self._size():
            names = None  # not one ID for each index: the indices are the IDs
        batched = self.batch_sampler is not None
        return BatchFetcher(self.dataset, self.seed, names, self.collate_fn or default_convert, batched)

    def _plan(self, order: Order, start: int) -> Plan:
        return Plan(order, start, self._batch * self.world_size, self._drop_last, self.rank, self.world_size)

    def _size(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def _setup(self) -> Setup:
        return replace(setup_of(self), batch_size=self._batch)

    def _delivered(self, batch: Any, info: BatchInfo, asked_ns: int) -> None:
        handed_ns = clock_ns()
        place, request = self.sampler, info.request
        if place.content is not None:
            place.content = content_hash(place.content, batch)
            info = replace(info, content=place.content)
        place.last, place.at = info, request.stop
        self._report.add(asked_ns, handed_ns, info.made, len(request.indices), info.nbytes)
        if self._report.due:
            self._report.look(self.tasks())

    def __getstate__(self) -> dict[str, Any]:
        """Without workers and without a pass that runs: a copy's next `iter()` delivers what this one's would."""
        return {**vars(self), "_samples": None, "_engine": None, "_early": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._samples = self._new_samples()

    # -----------------------------------------------------------------------------------------------------
    # what was delivered
    # -----------------------------------------------------------------------------------------------------

    @property
    def delivered(self) -> BatchInfo | None:
        return self.sampler.last

    @property
    def list_IDs(self) -> Sequence[str] | None:
        return self._samples.list_IDs

    def tasks(self) -> list[tuple[int, int]]:
        return self._engine.tasks() if self._engine is not None else []

    @property
    def threadable(self) -> bool:
        return self.engine == "inline" and may_be_threads(self)

    def helpers(self) -> list[tuple[int, int]]:
        return helpers() if self.engine == "process" else []

    def IDs(self, info: BatchInfo) -> list[str]:
        """IDs of the samples in a batch info's batch."""
        names = self._samples.list_IDs
        return [str(i) if names is None else names[i] for i in info.request.indices.tolist()]

    def order_digest(self, after: BatchInfo | None = None) -> str:
        """Digest over the IDs of every sample delivered so far, or up to a batch of the present epoch."""
        return self.sampler.digest.at(self._position(after))

    def content_digest(self) -> str | None:
        """Digest over what the batches held, None unless asked for."""
        content = self.sampler.content
        return content.hex() if content is not None else None

    def report(self) -> Report:
        """Rates and waiting of the present epoch."""
        return self._report

    def account_kept_by(self, times: Callable[[], EpochTimes]) -> None:
        self._report.kept_elsewhere(times)

    # -----------------------------------------------------------------------------------------------------
    # position
    # -----------------------------------------------------------------------------------------------------

    def state_dict(self, after: BatchInfo | None = None) -> dict[str, Any]:
        """The position after the batch handed out last (or after another one of this epoch); JSON-able."""
        place, position = self.sampler, self._position(after)
        content = after.content if after is not None else place.content
        return {
            "version": 1,
            "epoch": place.epoch,
            "position": position,
            "over": place.over if after is None else position >= self.end,
            **self._identity(),
            "digest": place.digest.state(position),
            "content": content.hex() if place.content is not None and content is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with the batch after that position at the next `iter()`.

        After an epoch's last batch nothing is left of it: `set_epoch` with its number gives no batch. Without
        `set_epoch` the next epoch follows, after a pass without a batch where the state was taken before the loop over
        the epoch had ended.

        Raises:
            UserError: the state belongs to another number of samples, seed or shuffle, or is none.
        """
        missing = {"epoch", "position", "digest"}.difference(state if isinstance(state, Mapping) else ())
        if missing:
            what = f"a {type(state).__name__} without {', '.join(sorted(missing))}"
            raise UserError(f"Loader: load_state_dict takes what state_dict() returned; this is {what}")
        for key, value in self._identity().items():
            if state.get(key) != value:
                raise UserError(
                    f"the loader's state was saved with {key}={state.get(key)}, this loader has {key}={value}; "
                    "the order would be another one, so use the same, or start anew"
                )
        place, position = self.sampler, whole_number("load_state_dict: position", state["position"], least=0)
        order = place.order_of(whole_number("load_state_dict: epoch", state["epoch"], least=0))
        self._end_pass()
        left = position < self._plan(order, position).end
        over = not left and (bool(state.get("over", True)) or position != self.end)
        place.moved(order, position, over)
        place.digest.load(state["digest"], order)
        if place.content is not None:
            place.content = bytes.fromhex(state.get("content") or "")
        place.loaded, place.named = state, True
        self._expect(1)

    def _position(self, after: BatchInfo | None) -> int:
        if after is None:
            return self.sampler.at
        if after.request.epoch != self.sampler.epoch:
            raise UserError(
                f"Loader: this batch is of epoch {after.request.epoch}, the loader is in epoch {self.sampler.epoch}; "
                "ask before the next epoch begins"
            )
        return after.request.stop

    def _identity(self) -> dict[str, Any]:
        return {"samples": self._size(), "seed": self.seed, "shuffle": self.sampler.shuffle}


@dataclass(frozen=True)
class _Settings:
    """What workers are started with, and may be changed later."""

    engine: str
    samples: int
    collate_fn: Any
    workers: tuple[Any, ...]
    processes: tuple[Any, ...]


def _joined(made: list[Any], rest: Iterator[Any]) -> Iterator[Any]:
    """First what is made already, then the rest."""
    made.reverse()
    while made:
        yield made.pop()
    yield from rest
