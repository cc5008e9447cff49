"""The sampler of a seeded loader: its order and position, also for a DataLoader that a library builds from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain
from numbers import Integral
from typing import Any

from torch.utils.data import BatchSampler, Dataset, IterableDataset, Sampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from feedrate.errors import UserError
from feedrate.loader.batch import Batch, BatchInfo
from feedrate.loader.digest import OrderDigest
from feedrate.loader.order import BLOCK, Order, Plan, rank_part


class OrderSampler(Sampler[int]):
    """The indices that the loader's next `iter()` delivers; iterated again, those of the epoch after it, and so on.

    Loaders built from the same sampler share their position: one continues where the other stopped.
    """

    shuffle = True
    digest: OrderDigest

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed
        self.part = 1, False, 0, 1  # samples of a global batch, drop_last, rank and world size
        self.order = self.order_of(0)
        self.position = 0  # in the order, after the last delivered batch
        self.begun = self.over = False  # whether a batch of the epoch was requested, and whether its end was reached
        self.loaded: dict[str, Any] | None = None  # a loaded state, until a batch is requested
        self.named = False  # whether the user chose the epoch, with Loader.set_epoch or load_state_dict
        self.wanted: int | None = None  # the epoch that a library chose, until the loader moves to it
        self.generation = 0  # of epoch iterators; raised to end the current one, which compares it with its own
        self.content: bytes | None = None
        self._following: int | None = None  # the epoch iterated next here, if the loader has not moved since

    @property
    def epoch(self) -> int:
        """The epoch of the position, from 0."""
        return self.order.epoch

    def order_of(self, epoch: int) -> Order:
        """The order of an epoch, with the present length of the dataset."""
        return Order(len(self.dataset), self.seed, epoch, self.shuffle)

    def set_epoch(self, epoch: int) -> None:
        """The next `iter()` is that epoch; for libraries that call it before each epoch, as for DistributedSampler.

        Fabric and accelerate count from 0 in each process. So once the user has chosen an epoch or loaded a position,
        only a later epoch than the one that is due is accepted.
        """
        epoch = whole_number("set_epoch: epoch", epoch, least=0)
        if not self.named or epoch > self._due()[0]:
            self.wanted = epoch

    def move(self, order: Order, position: int, over: bool = False) -> None:
        """Moves to a position of an epoch; `over`: past its end."""
        self.order, self.position, self.begun, self.over = order, position, over, over
        self.wanted = self._following = None

    def begin(self) -> None:
        """To be called when the first batch of an epoch is requested."""
        self.begun, self.loaded, self.wanted, self._following = True, None, None, None

    def position_after(self, info: BatchInfo | None) -> int:
        """The position after a batch of the current epoch, None for the last delivered one."""
        if info is None:
            return self.position
        if info.request.epoch != self.epoch:
            raise UserError(
                f"Loader: this batch is of epoch {info.request.epoch}, the loader is in epoch {self.epoch}; "
                "call this before the next epoch begins"
            )
        return info.request.stop

    def state(self, after: BatchInfo | None, end: int) -> dict[str, Any]:
        """The state after a batch of the current epoch, None: the last delivered one. The epoch ends at `end`."""
        position = self.position_after(after)
        content = self.content if after is None else after.content
        return {
            "version": 1,
            "epoch": self.epoch,
            "position": position,
            "over": self.over if after is None else position >= end,
            **self._identity(),
            "digest": self.digest.state(position),
            "content": content.hex() if self.content is not None and content is not None else None,
        }

    def check(self, state: Any) -> None:
        """Raises UserError for what is no state, or one of another order."""
        if not isinstance(state, Mapping) or not {"epoch", "position", "digest"} <= state.keys():
            raise UserError(f"Loader: load_state_dict takes what state_dict() returned; this is {state!r:.80}")
        for key, value in self._identity().items():
            if state.get(key) != value:
                raise UserError(
                    f"the loader's state was saved with {key}={state.get(key)}, this loader has {key}={value}; "
                    "the order would be another one, so use the same, or start a new run"
                )

    def load(self, state: dict[str, Any], order: Order, over: bool) -> None:
        """Moves to the position of a state, in the order of its epoch; `over`: past the epoch's end."""
        self.move(order, state["position"], over)
        self.digest.load(state["digest"], order)
        if self.content is not None:
            self.content = bytes.fromhex(state.get("content") or "")
        self.loaded, self.named = state, True

    def _identity(self) -> dict[str, Any]:
        return {"samples": len(self.dataset), "seed": self.seed, "shuffle": self.shuffle}

    def _due(self) -> tuple[int, int]:
        """Epoch and position of the next batch."""
        if self.wanted is not None:
            return self.wanted, self.position if self.wanted == self.epoch and not self.begun else 0
        if self._following is not None:
            return self._following, 0
        return (self.epoch + 1, 0) if self.begun else (self.epoch, self.position)

    def __iter__(self) -> Iterator[int]:
        epoch, start = self._due()
        self.wanted, self._following = None, epoch + 1
        part = self.part if self.part[-1] > 1 else (BLOCK, False, 0, 1)
        plan = Plan(self.order_of(epoch), start, *part)
        return (index for request in plan for index in request.indices.tolist())

    def __len__(self) -> int:
        """Samples of a whole epoch, of which a rank takes a part."""
        batch, drop_last, rank, world_size = self.part
        size = len(self.dataset)
        if world_size == 1:
            return size
        full, rest = divmod(size, batch)
        first, last = rank_part(0, 0 if drop_last else rest, rank, world_size)
        return full * (batch // world_size) + last - first


class InOrderSampler(OrderSampler, SequentialSampler):
    """Without shuffling; libraries recognise that by the base class SequentialSampler."""

    shuffle = False

    @property
    def data_source(self) -> Any:  # type: ignore[override]
        return self.dataset


def whole_number(name: str, value: Any, least: int | None = None) -> int:
    """An argument of Loader as an int; raises UserError if it is not a whole number, or below `least`."""
    if not isinstance(value, Integral) or (least is not None and value < least):
        bound = "" if least is None else f" of at least {least}"
        raise UserError(f"Loader: {name}={value!r}: must be a whole number{bound}")
    return int(value)


def check_arguments(dataset: Dataset[Any], arguments: dict[str, Any], rank: int, world_size: int) -> None:
    """Raises UserError for arguments that contradict a seed."""
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        kind = type(dataset).__name__
        raise UserError(f"Loader: seed is for map-style datasets with a __len__, not {kind}; pass seed=None")
    if arguments.get("generator") is not None:
        raise _unusable("generator", arguments["generator"])
    if arguments.get("in_order") is False:
        raise UserError("Loader: seed fixes the order, so in_order=False cannot be used; pass seed=None")
    if not 0 <= rank < world_size:
        raise UserError(f"Loader: rank={rank} must be at least 0 and below world_size={world_size}")


def inherited_order(arguments: dict[str, Any], dataset: Any, seed: int) -> tuple[OrderSampler | None, int, bool]:
    """The sampler of another SeededLoader that a library passes on, if any; with batch size and drop_last."""
    order, batch, drop_last = arguments.get("sampler"), arguments.get("batch_size", 1), arguments.get("drop_last")
    if (given := arguments.get("batch_sampler")) is not None:
        inner = given
        while inner is not None and type(inner) is not BatchSampler:  # libraries wrap it
            inner = getattr(inner, "batch_sampler", getattr(inner, "_batch_sampler", None))
        if inner is None or not isinstance(inner.sampler, OrderSampler):
            raise _unusable("batch_sampler", given)
        order, batch, drop_last = inner.sampler, inner.batch_size, inner.drop_last
    batch, drop_last = batch or 1, bool(drop_last)
    if order is None or (type(order) is SequentialSampler and order.data_source is dataset):  # shuffling turned off
        return None, batch, drop_last
    if not isinstance(order, OrderSampler):
        raise _unusable("sampler", order)
    if order.seed != seed or order.dataset is not dataset:
        raise UserError(
            f"Loader: the sampler of a Loader with seed={order.seed} keeps its order only with the same seed and "
            f"dataset, and seed={seed} was passed; pass the same, or seed=None"
        )
    return order, batch, drop_last


def _unusable(name: str, value: Any) -> UserError:
    remedy = "pass seed=None"
    if isinstance(value, DistributedSampler):
        remedy = "pass rank and world_size to Loader, and use_distributed_sampler=False to Lightning"
    return UserError(f"Loader: seed fixes the order, so {name} ({type(value).__name__}) cannot be used; {remedy}")


def skip_to(plan: Plan, sampled: Iterator[Any], name: str) -> tuple[Plan, Iterator[Any]]:
    """The plan from the first batch of a library's batch sampler on, which may skip some."""
    first = next(sampled, None)
    if first is None:
        return replace(plan, start=plan.end), sampled
    for request in plan:
        if request.indices.tolist() == list(first):
            # Lightning's iterator would begin again with iter()
            return replace(plan, start=request.start), chain([first], iter(lambda: next(sampled, None), None))
    raise _other_order(name)


def as_sampled(batches: Iterator[Batch], sampled: Iterator[Any], name: str) -> Iterator[Batch]:
    """The batches, checked against those of a library's batch sampler."""
    for indices in sampled:
        batch = next(batches)
        if batch.info.request.indices.tolist() != list(indices):
            break
        yield batch
    raise _other_order(name)


def _other_order(name: str) -> UserError:
    return UserError(f"Loader: {name} gives other batches than the seed's order; pass seed=None to follow it")
