"""What happens where a batch is made: in a worker, or in the main process without workers.

Names each sample before it is loaded, so that its random numbers are its own, and turns errors into values; what these
say is blame.py's affair.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils.data import Dataset, default_collate, get_worker_info

from feedrate.dataset.formats.sample_reader import Empty
from feedrate.dataset.ids import IDs
from feedrate.dataset.rng import GlobalSeeds, name_samples, sample_key, sample_seeds, seed_globals
from feedrate.errors import SampleError
from feedrate.loader.batch import BatchInfo, BatchRequest
from feedrate.loader.batch_protocol import getitems_of, load_batch_of, parts_of, stacked
from feedrate.loader.buffers import Pool, Ring, Writer
from feedrate.loader.digest import leaves, nbytes
from feedrate.loader.sample_errors import SampleErrors
from feedrate.loader.shape_mismatch import shape_mismatch
from feedrate.timing.stages import MAIN_THREAD, Computed, Slowest, Watch, clock_ns, samples_took, stage


class BatchFetcher(Dataset[Any]):
    """The user's dataset, asked for a whole request through PyTorch's batched protocol `__getitems__`.

    The dataset itself is asked by what it has: `load_batch` or `load_X` (see at_once.py), `__getitems__`, or
    `__getitem__`.

    Args:
        dataset: map-style.
        seed: of the loader.
        list_IDs: IDs by index, or None: then the index is the ID.
        collate: makes a batch of a list of samples, or of one sample where `batched` is False.
        batched: whether a request is a batch, or one sample.

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
        self._parts = parts_of(dataset)
        self._blame = SampleErrors(dataset, list_IDs, collate, whole=self._at_once is not None)
        self._ring: Ring | None = None
        self._writer: Writer | None = None  # of a worker's own
        self._pool = Pool()
        self._seeds = GlobalSeeds()
        self._slowest, self._computed = Slowest(), Computed()
        self._in_threads = False
        self.came_one_by_one = False

    @property
    def name(self) -> str:
        """Of the user's class."""
        return self._blame.name

    def named(self, request: BatchRequest) -> str:
        """The first IDs of a batch."""
        return self._blame.named(request)

    @property
    def whole(self) -> bool:
        """Whether the dataset is asked for whole batches first."""
        return self._at_once is not None

    def warm(self, batch: Any, count: int) -> None:
        """Memory for so many batches like this one, used once, so that their time is not that of page faults."""
        tensors = [value for _, value in leaves(batch) if isinstance(value, Tensor)]
        for used in [self._pool.empty(tuple(t.shape), t.dtype) for t in tensors for _ in range(count)]:
            used.zero_()

    def over(self, ring: Ring) -> BatchFetcher:
        """The same, whose batches leave a worker through the slots of a ring."""
        other = copy(self)
        other._ring = ring
        return other

    def in_threads(self) -> BatchFetcher:
        """The same for several threads at once: each sample has its `sample_rng`, the global generators are left alone.

        They are one for all threads, the training's included, so they cannot be seeded for a sample.
        """
        other = copy(self)
        other._in_threads = True
        return other

    def __getitems__(self, request: BatchRequest) -> tuple[Any, BatchInfo]:
        """The batch and its batch info, where torch's DataLoader asks: in a worker process or without workers."""
        info = get_worker_info()
        return self.make(request) if info is None else self._in_worker(request, info.id)

    def make(
        self, request: BatchRequest, worker: int | None = None, given_up: Callable[[], bool] = lambda: False
    ) -> tuple[Any, BatchInfo]:
        """The batch and its batch info, in this process; never raises for what a sample does.

        Args:
            worker: number of the thread, None for the main one.
            given_up: asked between samples, whether nobody waits for the batch any more.
        """
        watch = Watch.start(self._computed)
        batch, error = None, None
        try:
            batch = self._make(
                request, self._pool.empty, nullcontext() if self._in_threads else sample_seeds(), given_up
            )
        except _Failed as failed:
            error = failed.error
            error.worker = worker
        except BaseException:
            watch.end()
            raise
        made = watch.stop(MAIN_THREAD if worker is None else worker)
        return batch, BatchInfo(request, made, nbytes(batch), error, self._slow(watch, request))

    def _in_worker(self, request: BatchRequest, worker: int) -> tuple[Any, BatchInfo]:
        """The same, as it is sent to the main process."""
        watch = Watch.start(self._computed)
        batch, size, error = None, 0, None
        if self._ring is not None and self._writer is None:
            self._writer = Writer(self._ring, worker)
        writer = self._writer
        if writer is not None:
            writer.begin()
        try:
            batch = self._make(request, self._pool.empty if writer is None else writer.empty)
            with stage("handover"):
                size = nbytes(batch)
                if writer is not None:
                    batch = writer.finish(batch)
                sent = self._demand_sendable(batch, request)
                if writer is not None:
                    writer.leave(sent)
        except _Failed as failed:
            batch, error = None, failed.error
            error.worker = worker
            if writer is not None:
                writer.drop()
        return batch, BatchInfo(request, watch.stop(worker), size, error, self._slow(watch, request))

    def _slow(self, watch: Watch, request: BatchRequest) -> Sequence[tuple[int, int]]:
        times = watch.samples_ns
        return self._slowest.add(request.indices.tolist(), times) if len(times) == len(request.indices) else ()

    def _make(
        self,
        request: BatchRequest,
        empty: Empty,
        seeds: AbstractContextManager[None] | None = None,
        given_up: Callable[[], bool] = lambda: False,
    ) -> Any:
        if self._at_once is not None:
            try:
                batch = self._at_once(request.indices, empty)
            except (Exception, SystemExit) as error:
                raise _Failed(self._blame.batch(request, error)) from None
            if batch is not None:
                return batch
        # the main process's own random numbers are for training: loading must leave them as they were
        with seeds or nullcontext():
            return self._make_of_samples(request, empty, given_up)

    def _make_of_samples(self, request: BatchRequest, empty: Empty, given_up: Callable[[], bool]) -> Any:
        self.came_one_by_one = True
        if self._getitems is None:
            samples = self._one_by_one(request, given_up)
        else:
            samples = self._together(request, self._getitems)
        try:
            with stage("collate"):
                return self._collated(samples, request, empty)
        except SampleError as error:
            error.__cause__ = error.__context__ = None
            raise _Failed(error) from None
        except (Exception, SystemExit) as error:
            raise _Failed(self._blame.collating(request, error)) from None

    def _collated(self, samples: list[Any], request: BatchRequest, empty: Empty) -> Any:
        if not self.batched:
            return self.collate(samples[0])
        if self.collate is not default_collate:
            return self.collate(samples)
        if any(sample is None for sample in samples):
            raise self._blame.nothing(request, samples)
        if odd := shape_mismatch(samples):
            raise self._blame.mixed(request, *odd)
        with torch.no_grad():  # in a worker, and only there, it could not collate what requires a gradient
            return stacked(samples, empty)

    def _one_by_one(self, request: BatchRequest, given_up: Callable[[], bool]) -> list[Any]:
        samples, key, times, begin = [], b"", [], clock_ns()
        stored = self._stored(request)
        mark = clock_ns()
        each = (mark - begin) // len(request.indices)  # of reading them together
        seeds = None if self._in_threads else self._seeds
        if seeds is not None:
            seeds.begin()
        for index, ID, X in zip(request.indices.tolist(), self._IDs(request), stored, strict=True):
            if given_up():
                raise _Failed(
                    SampleError(f"batch of {self._blame.named(request)}: given up, since the loader was closed")
                )
            key = self._key(request.epoch, index, ID)
            try:
                samples.append(self._one(index, X, key, seeds))
            # StopIteration too: it would end the epoch early, silently; and SystemExit would end the worker
            except (Exception, SystemExit) as error:
                raise _Failed(self._blame.sample(ID, error)) from None
            now = clock_ns()
            times.append(now - mark + each)
            mark = now
        samples_took(times)
        if seeds is not None and key:
            seeds.finish(key)
        return samples

    def _stored(self, request: BatchRequest) -> Sequence[Tensor | None]:
        """What is stored of each sample, read together; None each where the dataset is to be asked for it."""
        count = len(request.indices)
        if self._parts is None or count == 1:
            return [None] * count
        try:
            found = self._parts[0](request.indices, self._pool.empty)
        except (Exception, SystemExit):  # the sample whose fault that is will say so itself
            found = None
        if found is None:
            return [None] * count
        return found.unbind(0) if isinstance(found, Tensor) else found

    def _one(self, index: int, X: Tensor | None, key: bytes, seeds: GlobalSeeds | None) -> Any:
        name_samples([key])
        if seeds is not None:
            seeds.seed(key)
        try:
            sample = self.dataset[index] if X is None or self._parts is None else self._parts[1](index, X)
        except (Exception, SystemExit):
            if seeds is None or not seeds.missed():
                raise
        else:
            if seeds is None or not seeds.missed():
                return sample
        name_samples([key])
        seeds.seed(key)
        return self.dataset[index]  # anew, as X may have been changed

    def _together(self, request: BatchRequest, getitems: Callable[[list[int]], Any]) -> list[Any]:
        indices: list[int] = request.indices.tolist()
        try:
            self._name([self._key(request.epoch, index, self._blame.ID(index)) for index in indices])
            samples = list(getitems(indices))
        except (Exception, SystemExit) as error:
            raise _Failed(self._culprit(request, getitems) or self._blame.batch(request, error)) from None
        if len(samples) != len(indices):
            raise _Failed(self._blame.count(request, len(samples)))
        return samples

    def _culprit(self, request: BatchRequest, getitems: Callable[[list[int]], Any]) -> SampleError | None:
        """The error of the first sample that fails alone, too."""
        for index in request.indices.tolist():
            try:
                self._name([self._key(request.epoch, index, self._blame.ID(index))])
                getitems([index])
            except (Exception, SystemExit) as error:
                return self._blame.sample(self._blame.ID(index), error, "__getitems__")
        return None

    def _name(self, keys: list[bytes]) -> None:
        name_samples(keys)
        if not self._in_threads:
            seed_globals(keys[0])

    def _IDs(self, request: BatchRequest) -> list[str]:
        if isinstance(self.list_IDs, IDs):
            return self.list_IDs.at(request.indices)
        return [self._blame.ID(index) for index in request.indices.tolist()]

    def _key(self, epoch: int, index: int, ID: str) -> bytes:
        return sample_key(self.seed, epoch, ID, 0 if self.occurrence is None else int(self.occurrence[index]))

    def _demand_sendable(self, batch: Any, request: BatchRequest) -> list[Tensor | torch.UntypedStorage]:
        """The tensors that are sent as they are, of sparse and nested ones and of subclasses their storages.

        Fails where a batch cannot leave the worker; torch would print a traceback and wait for it for ever.
        """
        try:
            probe = _Probe(io.BytesIO())
            probe.dump(batch)
        except Exception as error:
            raise _Failed(self._blame.sending(request, error)) from None
        return probe.tensors


class _Probe(ForkingPickler):
    """Pickles all but the data of tensors and arrays, which would be copied: shows whether a batch can be sent."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.tensors: list[Tensor | torch.UntypedStorage] = []

    def persistent_id(self, obj: Any) -> int | None:
        if isinstance(obj, Tensor):
            if obj.requires_grad and not obj.is_leaf:
                raise ValueError("a tensor carries its gradient's history: detach() it")
            if type(obj) not in (Tensor, Parameter) or obj.layout != torch.strided or obj.is_nested:
                return None  # what it is made of comes here, too
            self.tensors.append(obj)
            return 0
        if isinstance(obj, (torch.UntypedStorage, torch.TypedStorage)):
            self.tensors.append(obj if isinstance(obj, torch.UntypedStorage) else obj._untyped_storage)
            return 0
        return 0 if isinstance(obj, np.ndarray) and not obj.dtype.hasobject else None


class _Failed(Exception):
    def __init__(self, error: SampleError) -> None:
        super().__init__(str(error))
        self.error = error


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
