"""What happens where a batch is made: in a worker, or in the main process without workers.

Names each sample before it is loaded, so that its random numbers are its own, and turns errors into values.
"""

from __future__ import annotations

import io
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, default_collate, get_worker_info

from feedrate.dataset.ids import IDs
from feedrate.dataset.look import one_line
from feedrate.dataset.rng import GlobalSeeds, name_samples, sample_key, sample_seeds, seed_globals
from feedrate.dataset.sample_reader import Empty
from feedrate.errors import SampleError, UserError
from feedrate.loader.alike import odd_one_out
from feedrate.loader.at_once import getitems_of, load_batch_of, stacked
from feedrate.loader.digest import leaves
from feedrate.loader.slots import Pool, Ring, Writer
from feedrate.loader.tickets import Receipt, Ticket
from feedrate.timing.stages import Load, Slowest, Watch, clock_ns, samples_took, stage


class Samples(Dataset[Any]):
    """The user's dataset, asked for a whole ticket through PyTorch's batched protocol `__getitems__`.

    The dataset itself is asked by what it has: `load_batch` (see at_once.py), `__getitems__`, or `__getitem__`.

    Args:
        dataset: map-style.
        seed: of the loader.
        list_IDs: IDs by index, or None: then the index is the ID.
        collate: makes a batch of a list of samples, or of one sample where `batched` is False.
        batched: whether a ticket is a batch, or one sample.

    Attributes:
        came_one_by_one: whether the dataset was asked for samples, as it gave no batch as a whole.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        seed: int,
        list_IDs: Sequence[str] | None,
        collate: Callable[[Any], Any],
        batched: bool,
    ) -> None:
        self.dataset, self.seed, self.list_IDs, self.occurrence = dataset, seed, list_IDs, _occurrence(list_IDs)
        self.collate, self.batched = collate, batched
        self._at_once = load_batch_of(dataset) if batched and collate is default_collate else None
        self._getitems = getitems_of(dataset) if batched else None
        self._ring: Ring | None = None
        self._writer: Writer | None = None  # of a worker's own
        self._pool = Pool()
        self._seeds = GlobalSeeds()
        self._slowest = Slowest()
        self._in_threads = False
        self.came_one_by_one = False

    @property
    def name(self) -> str:
        """Of the user's class."""
        return type(_innermost(self.dataset)).__name__

    @property
    def whole(self) -> bool:
        """Whether the dataset is asked for whole batches first."""
        return self._at_once is not None

    def warm(self, batch: Any, count: int) -> None:
        """Memory for so many batches like this one, used once, so that their time is not that of page faults."""
        tensors = [value for _, value in leaves(batch) if isinstance(value, Tensor)]
        for used in [self._pool.empty(tuple(t.shape), t.dtype) for t in tensors for _ in range(count)]:
            used.zero_()

    def over(self, ring: Ring) -> Samples:
        """The same, whose batches leave a worker through the slots of a ring."""
        other = copy(self)
        other._ring = ring
        return other

    def in_threads(self) -> Samples:
        """The same for several threads at once: each sample has its `sample_rng`, the global generators are left alone.

        They are one for all threads, the training's included, so they cannot be seeded for a sample.
        """
        other = copy(self)
        other._in_threads = True
        return other

    def __getitems__(self, ticket: Ticket) -> tuple[Any, Receipt]:
        """The batch and its receipt, where torch's DataLoader asks: in a worker process or without workers."""
        info = get_worker_info()
        return self.make(ticket) if info is None else self._in_worker(ticket, info.id)

    def make(
        self, ticket: Ticket, worker: int | None = None, given_up: Callable[[], bool] = lambda: False
    ) -> tuple[Any, Receipt]:
        """The batch and its receipt, in this process; never raises for what a sample does.

        Args:
            worker: number of the thread, None for the main one.
            given_up: asked between samples, whether nobody waits for the batch any more.
        """
        watch = Watch()
        batch, error = None, None
        try:
            batch = self._make(
                ticket, self._pool.empty, nullcontext() if self._in_threads else sample_seeds(), given_up
            )
        except _Failed as failed:
            error = failed.error
            error.worker = worker
        return batch, Receipt(ticket, self._load(watch, ticket, worker), error)

    def _in_worker(self, ticket: Ticket, worker: int) -> tuple[Any, Receipt]:
        """The same, as it is sent to the main process."""
        watch = Watch()
        batch, error = None, None
        if self._ring is not None and self._writer is None:
            self._writer = Writer(self._ring, worker)
        writer = self._writer
        if writer is not None:
            writer.begin()
        try:
            batch = self._make(ticket, self._pool.empty if writer is None else writer.empty)
            with stage("handover"):
                if writer is not None:
                    batch = writer.finish(batch)
                self._demand_sendable(batch, ticket)
        except _Failed as failed:
            batch, error = None, failed.error
            error.worker = worker
            if writer is not None:
                writer.drop()
        return batch, Receipt(ticket, self._load(watch, ticket, worker), error)

    def _load(self, watch: Watch, ticket: Ticket, worker: int | None) -> Load:
        times = watch.samples_ns
        slow = self._slowest.add(ticket.indices.tolist(), times) if len(times) == len(ticket.indices) else ()
        return watch.stop(worker, slow)

    def _make(
        self,
        ticket: Ticket,
        empty: Empty,
        seeds: AbstractContextManager[None] | None = None,
        given_up: Callable[[], bool] = lambda: False,
    ) -> Any:
        if self._at_once is not None:
            try:
                batch = self._at_once(ticket.indices, empty)
            except (Exception, SystemExit) as error:
                raise _Failed(self._describe_batch(ticket, error)) from None
            if batch is not None:
                return batch
        # the main process's own random numbers are for training: loading must leave them as they were
        with seeds or nullcontext():
            return self._make_of_samples(ticket, empty, given_up)

    def _make_of_samples(self, ticket: Ticket, empty: Empty, given_up: Callable[[], bool]) -> Any:
        self.came_one_by_one = True
        if self._getitems is None:
            samples = self._one_by_one(ticket, given_up)
        else:
            samples = self._together(ticket, self._getitems)
        try:
            with stage("collate"):
                return self._collated(samples, ticket, empty)
        except SampleError as error:
            error.__cause__ = error.__context__ = None
            raise _Failed(error) from None
        except (Exception, SystemExit) as error:
            IDs = self._named(ticket)
            text = f"batch of {IDs}: collating failed with {one_line(error)}; {_remedy(self.collate)}"
            raise _Failed(SampleError(text, cause=traceback.format_exc())) from None

    def _collated(self, samples: list[Any], ticket: Ticket, empty: Empty) -> Any:
        if not self.batched:
            return self.collate(samples[0])
        if self.collate is not default_collate:
            return self.collate(samples)
        if any(sample is None for sample in samples):
            raise self._nothing(ticket, samples)
        if odd := odd_one_out(samples):
            raise self._mixed(ticket, *odd)
        with torch.no_grad():  # in a worker, and only there, it could not collate what requires a gradient
            return stacked(samples, empty)

    def _one_by_one(self, ticket: Ticket, given_up: Callable[[], bool]) -> list[Any]:
        samples, key, times, mark = [], b"", [], clock_ns()
        seeds = None if self._in_threads else self._seeds
        if seeds is not None:
            seeds.begin()
        for index, ID in zip(ticket.indices.tolist(), self._IDs(ticket), strict=True):
            if given_up():
                raise _Failed(SampleError(f"batch of {self._named(ticket)}: given up, since the loader was closed"))
            key = self._key(ticket.epoch, index, ID)
            try:
                samples.append(self._one(index, key, seeds))
            # StopIteration too: it would end the epoch early, silently; and SystemExit would end the worker
            except (Exception, SystemExit) as error:
                raise _Failed(self._describe(ID, error)) from None
            now = clock_ns()
            times.append(now - mark)
            mark = now
        samples_took(times)
        if seeds is not None and key:
            seeds.finish(key)
        return samples

    def _one(self, index: int, key: bytes, seeds: GlobalSeeds | None) -> Any:
        name_samples([key])
        if seeds is None:
            return self.dataset[index]
        seeds.seed(key)
        try:
            sample = self.dataset[index]
        except (Exception, SystemExit):
            if not seeds.missed():
                raise
        else:
            if not seeds.missed():
                return sample
        name_samples([key])
        seeds.seed(key)
        return self.dataset[index]

    def _together(self, ticket: Ticket, getitems: Callable[[list[int]], Any]) -> list[Any]:
        indices: list[int] = ticket.indices.tolist()
        try:
            self._name([self._key(ticket.epoch, index, self._ID(index)) for index in indices])
            samples = list(getitems(indices))
        except (Exception, SystemExit) as error:
            raise _Failed(self._culprit(ticket, getitems) or self._describe_batch(ticket, error)) from None
        if len(samples) != len(indices):
            name = f"{self.name}.__getitems__"
            text = f"batch of {self._named(ticket)}: {name} returned {len(samples)} samples for {len(indices)} indices"
            raise _Failed(SampleError(f"{text}; return one for each, in their order"))
        return samples

    def _culprit(self, ticket: Ticket, getitems: Callable[[list[int]], Any]) -> SampleError | None:
        """The error of the first sample that fails alone, too."""
        for index in ticket.indices.tolist():
            try:
                self._name([self._key(ticket.epoch, index, self._ID(index))])
                getitems([index])
            except (Exception, SystemExit) as error:
                return self._describe(self._ID(index), error, "__getitems__")
        return None

    def _name(self, keys: list[bytes]) -> None:
        name_samples(keys)
        if not self._in_threads:
            seed_globals(keys[0])

    def _ID(self, index: int) -> str:
        return str(index) if self.list_IDs is None else self.list_IDs[index]

    def _IDs(self, ticket: Ticket) -> list[str]:
        if isinstance(self.list_IDs, IDs):
            return self.list_IDs.at(ticket.indices)
        return [self._ID(index) for index in ticket.indices.tolist()]

    def _key(self, epoch: int, index: int, ID: str) -> bytes:
        return sample_key(self.seed, epoch, ID, 0 if self.occurrence is None else int(self.occurrence[index]))

    def _demand_sendable(self, batch: Any, ticket: Ticket) -> None:
        """Fails where a batch cannot leave the worker; torch would print a traceback and wait for it for ever."""
        try:
            _Probe(io.BytesIO()).dump(batch)
        except Exception as error:
            text = f"batch of {self._named(ticket)}: cannot leave its worker ({one_line(error)})"
            text += f"; {_remedy(self.collate)}, or set loader.num_workers=0"
            raise _Failed(SampleError(text, cause=traceback.format_exc())) from None

    def _describe_batch(self, ticket: Ticket, error: BaseException) -> SampleError:
        if isinstance(error, SampleError) and error.ID is not None:
            return self._describe(error.ID, error)
        name = f"{self.name}.{'load_batch' if self._at_once else '__getitems__'}"
        text = f"batch of {self._named(ticket)}: {name} failed with {one_line(error)}"
        return SampleError(text, cause=traceback.format_exc())

    def _describe(self, ID: str, error: BaseException, method: str = "__getitem__") -> SampleError:
        cause = traceback.format_exc()
        if isinstance(error, SampleError) and error.ID is not None:
            error.cause = error.cause or cause
            error.__cause__ = error.__context__ = None  # may not survive pickling; its text is in `cause`
            return error
        path = _path(self.dataset, ID)
        where = f"sample {ID!r}" + (f" ({path})" if path else "")
        if isinstance(error, UserError):
            return SampleError(f"{where}: {error}", ID=ID, path=path, cause=cause)
        name = self.name
        text = f"{where}: {name}.{method} failed with {one_line(error)}"
        return SampleError(text, ID=ID, path=path, cause=cause)

    def _mixed(self, ticket: Ticket, odd: int, other: int, difference: str) -> SampleError:
        IDs = [self._ID(index) for index in ticket.indices.tolist()]
        path = _path(self.dataset, IDs[odd])
        where = f"sample {IDs[odd]!r}" + (f" ({path})" if path else "")
        text = f"{where}: {difference} sample {IDs[other]!r}; make them alike, or take it out of the partition"
        return SampleError(text, ID=IDs[odd], path=path)

    def _nothing(self, ticket: Ticket, samples: list[Any]) -> SampleError:
        at = next(place for place, sample in enumerate(samples) if sample is None)
        ID = self._ID(int(ticket.indices[at]))
        path = _path(self.dataset, ID)
        where = f"sample {ID!r}" + (f" ({path})" if path else "")
        text = f"{where}: {self.name} returned None; return the pair (X, y)"
        return SampleError(text, ID=ID, path=path)

    def _named(self, ticket: Ticket) -> str:
        IDs = [self._ID(index) for index in ticket.indices[:5].tolist()]
        return ", ".join(map(repr, IDs)) + (", ..." if len(ticket.indices) > 5 else "")


class _Probe(ForkingPickler):
    """Pickles everything but tensors and arrays, which would be copied: shows whether a batch can be sent."""

    def persistent_id(self, obj: Any) -> int | None:
        if isinstance(obj, Tensor):
            if obj.requires_grad and not obj.is_leaf:
                raise ValueError("a tensor carries its gradient's history: detach() it")
            return 0
        return 0 if isinstance(obj, np.ndarray) and not obj.dtype.hasobject else None


class _Failed(Exception):
    def __init__(self, error: SampleError) -> None:
        super().__init__(str(error))
        self.error = error


class _RemoteTraceback(Exception):
    """Carries a worker's traceback as text, for HYDRA_FULL_ERROR=1 and notebooks."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def with_cause(error: SampleError) -> SampleError:
    """The error as it is raised in the main process."""
    if error.cause:
        error.__cause__ = _RemoteTraceback(error.cause)
    return error


def _occurrence(names: Sequence[str] | None) -> np.ndarray | None:
    """For each index how often its ID stands before it; None where no ID stands twice, as in every catalog."""
    if not isinstance(names, (list, tuple, IDs)):  # computed, as of a generated dataset of any size
        return None
    # hashes, since a set of the names themselves would take far more memory than the catalog; equal ones mean a second,
    # exact look
    if isinstance(names, IDs):
        hashes = names.hashes()
    else:
        hashes = np.fromiter(map(hash, names), dtype=np.int64, count=len(names))
    hashes.sort()
    if not (hashes[1:] == hashes[:-1]).any():
        return None
    counts: dict[str, int] = {}
    result = np.empty(len(names), dtype=np.int64)
    for index, name in enumerate(names):
        result[index] = counts[name] = counts.get(name, -1) + 1
    return result


def _path(dataset: Any, ID: str) -> str | None:
    """The sample's file, where the dataset has a method `path(ID)` as TensorFiles does."""
    found = getattr(dataset, "path", None)
    try:
        return str(found(ID)) if callable(found) else None
    except Exception:  # a method of that name that means something else must not hide the error to be told
        return None


def _innermost(dataset: Any) -> Any:
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset


def _remedy(collate: Callable[..., Any]) -> str:
    if collate is default_collate:
        return "return tensors of one shape, numbers or texts, or pass a collate_fn"
    return f"mend {getattr(collate, '__name__', 'collate_fn')}"
