"""Which samplers a Loader with a seed accepts: its own order, as libraries hand it on that rebuild loaders.

What the order is: sampler.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

from torch.utils.data import Dataset, IterableDataset, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from feedrate.errors import UserError
from feedrate.loader.order import Plan
from feedrate.loader.sampler import OrderSampler, order_sampler_of


def order_given(given: dict[str, Any], dataset: Any, seed: int) -> tuple[OrderSampler | None, int, bool]:
    """The order of another SeededLoader, where a library hands on its sampler or batch_sampler; and the batches."""
    order, batch, drop_last = given.get("sampler"), given.get("batch_size", 1) or 1, bool(given.get("drop_last"))
    if given.get("batch_sampler") is not None:
        order, batch, drop_last = order_sampler_of(given["batch_sampler"]) or (None, batch, drop_last)
    if not isinstance(order, OrderSampler):
        return None, batch, drop_last
    if order.seed != seed or order.dataset is not dataset:
        raise UserError(
            f"Loader: the sampler of a Loader with seed={order.seed} keeps its order only with the same seed and "
            f"dataset, and seed={seed} was passed; pass the same, or seed=None"
        )
    return order, batch, drop_last


def refuse(dataset: Dataset[Any], given: dict[str, Any], rank: int, world_size: int) -> None:
    """Raises UserError for arguments that a seed leaves no room for."""
    if isinstance(dataset, IterableDataset):
        raise UserError("Loader: seed is for map-style datasets, an iterable dataset has its own order; pass seed=None")
    if not hasattr(dataset, "__len__"):
        raise UserError(f"Loader: seed needs the number of samples, so give {type(dataset).__name__} a __len__")
    for name in ("sampler", "batch_sampler", "generator"):
        found = given.get(name)
        if found is None or _keeps_order(name, found, dataset):
            continue
        instead = "pass seed=None"
        if isinstance(found, DistributedSampler):
            instead = (
                "pass rank and world_size to Loader, and use_distributed_sampler=False to Lightning's Trainer or "
                "setup_dataloaders"
            )
        raise UserError(f"Loader: seed fixes the order, so {name} ({type(found).__name__}) cannot be used; {instead}")
    if given.get("in_order") is False:
        raise UserError("Loader: seed fixes the order, so in_order=False cannot be used; pass seed=None")
    if not 0 <= rank < world_size:
        raise UserError(f"Loader: rank={rank} must be at least 0 and below world_size={world_size}")


def _keeps_order(name: str, found: Any, dataset: Any) -> bool:
    """Whether a library has only handed on a Loader's own order, or turned shuffling off."""
    if name == "batch_sampler":
        return order_sampler_of(found) is not None
    if type(found) is SequentialSampler:
        return found.data_source is dataset
    return isinstance(found, OrderSampler)


def part_given(plan: Plan, given: Iterator[Any], name: str) -> tuple[Plan, Iterator[Any]]:
    """The plan from the first batch on that a library's batch sampler gives, which may leave out some."""
    first = next(given, None)
    if first is None:
        return replace(plan, start=plan.end), given
    for start, _, indices in plan:
        if indices.tolist() == list(first):
            return replace(plan, start=start), chain([first], _others(given))
    raise _other_order(name)


def _others(given: Iterator[Any]) -> Iterator[Any]:
    """All that is left; Lightning's iterator would begin again with iter()."""
    while (indices := next(given, None)) is not None:
        yield indices


def as_given(batches: Iterator[Any], given: Iterator[Any], name: str) -> Iterator[Any]:
    """The batches, as long as a library's batch sampler gives the same ones."""
    for indices in given:
        batch, info = next(batches)
        if info.request.indices.tolist() != list(indices):
            break
        yield batch, info
    raise _other_order(name)


def _other_order(name: str) -> UserError:
    return UserError(f"Loader: {name} gives other batches than the seed's order; pass seed=None to follow it")
