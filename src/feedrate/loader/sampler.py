"""`loader.sampler` of a Loader with a seed: its order, and where the loader is in it.

A library that builds a DataLoader of its own from `loader.sampler` or `loader.batch_sampler` gets the loader's order.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

from torch.utils.data import BatchSampler, Sampler, SequentialSampler

from feedrate.errors import UserError
from feedrate.loader.batch import BatchInfo
from feedrate.loader.digest import OrderDigest
from feedrate.loader.order import BLOCK, Order, Plan, rank_part


class OrderSampler(Sampler[int]):
    """The indices that the loader's next `iter()` delivers; iterated again, those of the epoch after it, and so on.

    Loaders that are built from the same sampler share their position: the one goes on where the other stopped.

    Args:
        dataset: of which only the length is asked, for each epoch.

    Attributes:
        part: samples of a global batch, drop_last, rank and world size: which part of the order is this rank's.
        order: of the present epoch.
        at: position in it after the batch that was delivered last.
        begun: whether a batch of it has been asked for.
        over: whether all of its batches were delivered, and the end was reached.
        loaded: the state that was loaded, until a batch is asked for.
        named: whether the user named the epoch, by `Loader.set_epoch` or `load_state_dict`.
        asked: the epoch that a library named by `set_epoch` here, until the loader goes to it.
        passes: number of passes so far; only the last one may go on.
        digest, content: of what was delivered; see Loader.
        last: batch info of the batch that was delivered last.
    """

    shuffle = True
    digest: OrderDigest

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed
        self.part = 1, False, 0, 1
        self.order = self.order_of(0)
        self.at, self.begun, self.over, self.passes = 0, False, False, 0
        self.loaded: dict[str, Any] | None = None
        self.named = False
        self.asked: int | None = None
        self.content: bytes | None = None
        self.last: BatchInfo | None = None
        self._following: int | None = None  # what is iterated next here, where the loader itself has not moved since

    @property
    def epoch(self) -> int:
        return self.order.epoch

    def order_of(self, epoch: int) -> Order:
        return Order(len(self.dataset), self.seed, epoch, self.shuffle)

    def set_epoch(self, epoch: int) -> None:
        """As DistributedSampler's, for libraries that call it before each epoch: the next `iter()` is that epoch.

        Fabric and accelerate count from 0 in each process. Where the user has named an epoch or loaded a position,
        only a later epoch than the one that is due is therefore taken.
        """
        epoch = whole_number("set_epoch: epoch", epoch, least=0)
        if not self.named or epoch > self._due()[0]:
            self.asked = epoch

    def moved(self, order: Order, at: int, over: bool = False) -> None:
        """The loader goes to a position; `over`: past the epoch's end."""
        self.order, self.at, self.begun, self.over = order, at, over, over
        self.asked = self._following = None

    def begin(self) -> None:
        """The first batch of a pass is asked for."""
        self.begun, self.loaded, self.asked, self._following = True, None, None, None

    def end(self, at: int) -> None:
        """A pass has reached its end."""
        self.at, self.over = at, True

    def _due(self) -> tuple[int, int]:
        """Epoch and position of what comes next."""
        if self.asked is not None:
            return self.asked, self.at if self.asked == self.epoch and not self.begun else 0
        if self._following is not None:
            return self._following, 0
        return (self.epoch + 1, 0) if self.begun else (self.epoch, self.at)

    def __iter__(self) -> Iterator[int]:
        epoch, start = self._due()
        self.asked, self._following = None, epoch + 1
        order = self.order_of(epoch)
        batch, drop_last, rank, world_size = self.part
        if world_size == 1:
            return _given(order, start)
        return (i for _, _, part in Plan(order, start, batch, drop_last, rank, world_size) for i in part.tolist())

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
    """The same without shuffling; libraries see it from the class."""

    shuffle = False

    @property
    def data_source(self) -> Any:  # type: ignore[override]
        return self.dataset


def whole_number(name: str, value: Any, least: int | None = None) -> int:
    """An argument of Loader as an int.

    Raises:
        UserError: it is no whole number, or below `least`.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or (least is not None and number < least):
        bound = "" if least is None else f" of at least {least}"
        raise UserError(f"Loader: {name}={value!r}: must be a whole number{bound}")
    return number


def order_sampler_of(batch_sampler: Any) -> tuple[OrderSampler, int, bool] | None:
    """The OrderSampler that a library has wrapped, with batch size and drop_last; None where there is none inside."""
    for _ in range(4):
        if type(batch_sampler) is BatchSampler:
            found = batch_sampler.sampler
            if not isinstance(found, OrderSampler):
                return None
            return found, batch_sampler.batch_size, batch_sampler.drop_last
        inner = [getattr(batch_sampler, name, None) for name in ("batch_sampler", "_batch_sampler")]
        batch_sampler = next((found for found in inner if found is not None), None)
    return None


def _given(order: Order, start: int) -> Iterator[int]:
    for first in range(start, order.size, BLOCK):
        yield from order.indices(first, min(first + BLOCK, order.size)).tolist()
