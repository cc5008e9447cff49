"""`Loader`: a torch DataLoader whose batches are a function of (seed, epoch, position).

Fetching, workers and collation are torch's; order, randomness, position, digest and clock are ours.
"""

from __future__ import annotations

import inspect
import operator
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Sampler, default_convert

from feedrate.dataset.build import list_IDs
from feedrate.errors import UserError
from feedrate.loader.digest import OrderDigest, content_hash
from feedrate.loader.engine import checked, choose, may_be_threads
from feedrate.loader.fetch import Samples
from feedrate.loader.inline import Inline
from feedrate.loader.order import Order, Plan
from feedrate.loader.passes import Pass
from feedrate.loader.report import Report, setup_of
from feedrate.loader.threads import Threads
from feedrate.loader.tickets import Receipt, Tickets
from feedrate.loader.workers import Workers, helpers
from feedrate.timing import EpochTimes
from feedrate.timing.stages import clock_ns

FOLLOWING = -1  # the next epoch number
_ENGINES: dict[str, type[Inline] | type[Threads] | type[Workers]] = {
    "inline": Inline,
    "thread": Threads,
    "process": Workers,
}
_SIGNATURE = inspect.signature(DataLoader.__init__)


class Loader(DataLoader[Any]):
    """DataLoader's arguments, and:

    Args:
        seed: None for exactly torch's DataLoader, results and errors alike. A number for an order of our own on a
            map-style dataset: batches are then a function of (seed, epoch, position), whatever the workers.
        engine: with a seed, what the workers are: 'thread', 'process', or 'auto' for the better of the two by a short
            measurement. Without workers it is 'inline'. What is delivered is the same.
        content_digest: with a seed, also hash what the batches hold, batch by batch; costs a pass over each.
        rank, world_size: with a seed, take the rank-th contiguous part of each global batch of
            `batch_size * world_size` samples.

    With a seed, `iter()` goes on to the next epoch each time, and ends the pass before it; `set_epoch` names another
    one. `state_dict()` is the exact position, and `load_state_dict()` goes on with the batch after it, with any number
    of workers and batch size. The dataset is asked for whole batches where it has `load_batch` (as TensorFiles has) or
    PyTorch's `__getitems__`, and otherwise sample by sample.

    Attributes:
        engine: the engine; 'auto' until the first batches are loaded.

    Raises:
        UserError: an argument that a seed leaves no room for, or that the engine cannot use.
        SampleError: while iterating, naming the sample.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *args: Any,
        seed: int | None = None,
        engine: str = "auto",
        content_digest: bool = False,
        rank: int = 0,
        world_size: int = 1,
        **kwargs: Any,
    ) -> None:
        self.seed = None if seed is None else operator.index(seed)
        if self.seed is None:
            if content_digest or engine != "auto" or (rank, world_size) != (0, 1):
                raise UserError("Loader: engine, content_digest, rank and world_size need a seed; pass seed=0")
            super().__init__(dataset, *args, **kwargs)
            self.engine = "process" if self.num_workers else "inline"
            return
        given = _SIGNATURE.bind(self, dataset, *args, **kwargs).arguments
        _refuse(dataset, given, rank, world_size)
        super().__init__(dataset, *args, **kwargs)
        if not self.timeout <= threading.TIMEOUT_MAX:
            raise UserError(
                f"loader.timeout={self.timeout:g}: must be at most {threading.TIMEOUT_MAX:g} seconds; 0 waits for ever"
            )
        self.engine = checked(engine, self)
        self.rank, self.world_size = rank, world_size
        self._shuffled = bool(given.get("shuffle"))
        self._content = b"" if content_digest else None
        names = list_IDs(dataset)
        if names is not None and len(names) != self._size():
            names = None  # not one ID for each index: the indices are the IDs
        collate = self.collate_fn or default_convert
        self._samples = Samples(dataset, self.seed, names, collate, batched=self.batch_size is not None)
        self._tickets = Tickets(dataset)
        self._expect(1)
        self._engine: Inline | Threads | Workers | None = None
        self._report = Report(setup_of(self))
        # the position: `_at` in the epoch of `_order`, and whether a pass through that epoch has begun
        self._order, self._at, self._begun = Order(self._size(), self.seed, 0, self._shuffled), 0, False
        self._digest = OrderDigest(names)
        self._digest.begin(self._order, 0)
        self._last: Receipt | None = None
        self._early: Pass | None = None
        self._passes = 0  # number of the present pass; another one that still runs is over

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
        return super().__len__() if self.seed is None else len(self._plan(0))

    def start(self, check: Callable[[], None] | None = None) -> None:
        """Starts the workers and the first batches now; the next `iter()` takes them over.

        For the time before CUDA, tracking and other threads exist: forking is safe only then.

        Args:
            check: called when the engine is known, before any worker is there; it may raise.
        """
        if self.seed is not None and self._early is None:
            self._early = self._begin(check)

    def close(self, at_once: bool = False) -> None:
        """Ends the workers now, or `at_once`, in the middle of a sample; the next `iter()` starts new ones.

        Without it they end with the last reference to the loader. Where that is found by Python's cyclic collector, it
        closes the workers' queues before torch can say goodbye through them, and each worker takes five seconds.
        """
        if self.seed is None:
            self._iterator = None
            return
        if self._early is not None:
            self._begun = False  # that pass was never asked for a batch
        self._early = None
        self._passes += 1
        if self._engine is None:
            return
        if at_once:
            self._engine.kill()
        self._engine.end()

    @property
    def end(self) -> int:
        """The position after an epoch's last batch, with a seed."""
        size, batch = self._size(), (self.batch_size or 1) * self.world_size
        return size - size % batch if self.drop_last else size

    def lost_worker(self, error: BaseException) -> UserError | None:
        """What torch's error about a dead worker means, None for any other error.

        Here `next()` asks this itself. But torch also raises that error in whatever the main process does when a worker
        dies, such as a step of training.
        """
        return self._engine.lost(error) if self.seed is not None and self._engine is not None else None

    def set_epoch(self, epoch: int, then: int | None = FOLLOWING) -> None:
        """The next `iter()` is epoch `epoch`; a position that was loaded for that epoch stays.

        Args:
            then: the epoch after it, of which persistent workers make the first batches while the last ones of this one
                are used; None for none. Another one may be asked for all the same.
        """
        if self.seed is None:
            return
        awaited = self._early is not None or not self._begun
        if epoch != self._order.epoch or not awaited:
            self._move(epoch)
        self._expect(None if then is None else 1 if then == FOLLOWING else then - epoch)

    def _expect(self, step: int | None) -> None:
        self._tickets.step = step if self.persistent_workers else None

    def _move(self, epoch: int) -> None:
        """To the start of an epoch."""
        assert self.seed is not None
        order = self._tickets.known(Order(self._size(), self.seed, epoch, self._shuffled))
        self._digest.begin(order, self._at)
        self._order, self._at, self._begun = order, 0, False
        self._expect(1)
        self._end_pass()

    def _end_pass(self) -> None:
        self._last, self._early = None, None
        self._passes += 1

    def _begin(self, check: Callable[[], None] | None = None) -> Pass:
        if self._begun:
            self._move(self._order.epoch + 1)
        elif self._at == 0:  # the dataset may have grown since
            step = self._tickets.step
            self._move(self._order.epoch)
            self._expect(step)
        self._end_pass()
        plan = self._plan(self._at)
        made: list[Any] = []
        if self._engine is None:
            choice = choose(self._samples, plan, self)
            self.engine, made = choice.engine, choice.made
            if check is not None:
                check()
            self._engine = _ENGINES[self.engine](self._samples, self._tickets)
        rest = replace(plan, start=made[-1][1].ticket.stop) if made else plan
        batches = self._engine.begin(rest, self)
        self._begun = True
        self._report.begin(self._order.epoch, setup_of(self), self.tasks())
        return Pass(self, self._engine, _joined(made, batches) if made else batches, plan, self._passes)

    def _plan(self, start: int) -> Plan:
        batch = (self.batch_size or 1) * self.world_size
        return Plan(self._order, start, batch, bool(self.drop_last), self.rank, self.world_size)

    def _size(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def _delivered(self, batch: Any, receipt: Receipt, asked_ns: int) -> None:
        handed_ns = clock_ns()
        if self._content is not None:
            self._content = content_hash(self._content, batch)
            receipt = replace(receipt, content=self._content)
        ticket = receipt.ticket
        # torch's DataLoader looks at each name that is set, which costs as much as all the rest here
        vars(self).update(_last=receipt, _at=ticket.stop)
        self._report.add(asked_ns, handed_ns, receipt.made, len(ticket.indices), receipt.nbytes)
        if self._report.due:
            self._report.look(self.tasks())

    # -----------------------------------------------------------------------------------------------------
    # what was delivered
    # -----------------------------------------------------------------------------------------------------

    @property
    def delivered(self) -> Receipt | None:
        """The receipt of the batch that was handed out last, None before the first."""
        return self._last if self.seed is not None else None

    @property
    def list_IDs(self) -> Sequence[str] | None:
        """IDs by index; None where the index is the ID."""
        return self._samples.list_IDs if self.seed is not None else None

    def tasks(self) -> list[tuple[int, int]]:
        """Process and thread of each worker that lives now, as the system numbers them."""
        return self._engine.tasks() if self.seed is not None and self._engine is not None else []

    @property
    def threadable(self) -> bool:
        """Whether threads can be trusted with what this loader has loaded without workers."""
        return self.seed is not None and self.engine == "inline" and may_be_threads(self)

    def helpers(self) -> list[tuple[int, int]]:
        """The same of threads in this process that take batches over from worker processes, whichever loader's."""
        return helpers() if self.seed is not None and self.engine == "process" else []

    def IDs(self, receipt: Receipt) -> list[str]:
        """IDs of the samples in a receipt's batch."""
        names = self._samples.list_IDs
        return [str(i) if names is None else names[i] for i in receipt.ticket.indices.tolist()]

    def order_digest(self, after: Receipt | None = None) -> str:
        """Digest over the IDs of every sample delivered so far, or up to a batch of the present epoch."""
        self._demand_seed("order_digest")
        return self._digest.at(self._position(after))

    def content_digest(self) -> str | None:
        """Digest over what the batches held, None unless asked for."""
        self._demand_seed("content_digest")
        return self._content.hex() if self._content is not None else None

    def report(self) -> Report:
        """Rates and waiting of the present epoch."""
        self._demand_seed("report")
        return self._report

    def account_kept_by(self, times: Callable[[], EpochTimes]) -> None:
        """The training loop writes the account of the present pass, which `times` gives; report() reads it there."""
        if self.seed is not None:
            self._report.kept_elsewhere(times)

    # -----------------------------------------------------------------------------------------------------
    # position
    # -----------------------------------------------------------------------------------------------------

    def state_dict(self, after: Receipt | None = None) -> dict[str, Any]:
        """The position after the batch handed out last (or after another one of this epoch); JSON-able."""
        self._demand_seed("state_dict")
        position = self._position(after)
        content = after.content if after is not None else self._content
        return {
            "version": 1,
            "epoch": self._order.epoch,
            "position": position,
            **self._identity(),
            "digest": self._digest.state(position),
            "content": content.hex() if self._content is not None and content is not None else None,
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
        assert self.seed is not None
        self._end_pass()
        self._order = Order(self._size(), self.seed, int(state["epoch"]), self._shuffled)
        self._digest.load(state["digest"], self._order)
        self._at = int(state["position"])
        if self._content is not None:
            self._content = bytes.fromhex(state.get("content") or "")
        self._expect(1)
        self._begun = self._at >= self._plan(self._at).end  # nothing is left of that epoch

    def _position(self, after: Receipt | None) -> int:
        if after is None:
            return self._at
        if after.ticket.epoch != self._order.epoch:
            raise UserError(
                f"Loader: the receipt is of epoch {after.ticket.epoch}, the loader is in epoch {self._order.epoch}; "
                "ask before the next epoch begins"
            )
        return after.ticket.stop

    def _identity(self) -> dict[str, Any]:
        return {"samples": self._size(), "seed": self.seed, "shuffle": self._shuffled}

    def _demand_seed(self, name: str) -> None:
        if self.seed is None:
            raise UserError(f"Loader.{name}() needs a seed: without one this is torch's DataLoader; pass seed=0")


def _joined(made: list[Any], rest: Iterator[Any]) -> Iterator[Any]:
    """First what is made already, then the rest."""
    made.reverse()
    while made:
        yield made.pop()
    yield from rest


def _refuse(dataset: Dataset[Any], given: dict[str, Any], rank: int, world_size: int) -> None:
    if isinstance(dataset, IterableDataset):
        raise UserError("Loader: seed is for map-style datasets, an iterable dataset has its own order; pass seed=None")
    if not hasattr(dataset, "__len__"):
        raise UserError(f"Loader: seed needs the number of samples, so give {type(dataset).__name__} a __len__")
    for name, kind in (("sampler", Sampler), ("batch_sampler", BatchSampler), ("generator", torch.Generator)):
        if given.get(name) is not None:
            raise UserError(f"Loader: seed fixes the order, so {name} ({kind.__name__}) cannot be used; pass seed=None")
    if given.get("in_order") is False:
        raise UserError("Loader: seed fixes the order, so in_order=False cannot be used; pass seed=None")
    if not 0 <= rank < world_size:
        raise UserError(f"Loader: rank={rank} must be at least 0 and below world_size={world_size}")
