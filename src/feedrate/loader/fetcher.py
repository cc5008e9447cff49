"""Loads one batch from the user's dataset, in whatever process or thread calls it.

Each sample's name is set before it is loaded, so that it has its own random numbers; errors become values.
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
from feedrate.loader.batch import Batch, BatchInfo, BatchRequest
from feedrate.loader.batch_protocol import getitems_of, load_batch_of, parts_of, stacked
from feedrate.loader.buffers import BufferPool, BufferWriter, SharedBuffers
from feedrate.loader.digest import leaves, nbytes
from feedrate.loader.sample_errors import SampleErrors
from feedrate.timing.stages import MAIN_THREAD, Computed, Slowest, Watch, clock_ns, samples_took, stage


class BatchFetcher(Dataset[Any]):
    """Loads the batch of a request from a dataset.

    It calls what the dataset has: `load_batch` or `load_X` (see batch_protocol.py), `__getitems__`, or `__getitem__`.
    In a worker, torch's DataLoader calls `__getitems__` of this class with a whole request.

    Args:
        dataset: map-style.
        seed: of the loader.
        list_IDs: IDs by index, or None: then the index is the ID.
        collate: turns a list of samples into a batch; with `batched=False`, one sample into what is delivered.
        batched: whether a request is a batch, or one sample.

    Attributes:
        came_one_by_one: whether samples were loaded, and not a whole batch at once.
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
        self._load_batch = load_batch_of(dataset) if batched and collate is default_collate else None
        self._getitems = getitems_of(dataset) if batched else None
        self._parts = parts_of(dataset)
        self._errors = SampleErrors(dataset, list_IDs, collate, whole=self._load_batch is not None)
        self.buffers: SharedBuffers | None = None
        self._writer: BufferWriter | None = None  # in a worker
        self._pool = BufferPool()
        self._seeds = GlobalSeeds()
        self._slowest, self._computed = Slowest(), Computed()
        self._in_threads = False
        self.came_one_by_one = False

    @property
    def name(self) -> str:
        """Of the user's class."""
        return self._errors.name

    def named(self, request: BatchRequest) -> str:
        """The first IDs of a batch."""
        return self._errors.named(request)

    @property
    def whole(self) -> bool:
        """Whether the dataset can load whole batches."""
        return self._load_batch is not None

    def warm(self, batch: Any, count: int) -> None:
        """Touches memory for `count` batches like this one, so that page faults are not part of a measurement."""
        tensors = [value for _, value in leaves(batch) if isinstance(value, Tensor)]
        for used in [self._pool.empty(tuple(t.shape), t.dtype) for t in tensors for _ in range(count)]:
            used.zero_()

    def over(self, buffers: SharedBuffers) -> BatchFetcher:
        """A copy whose batches leave a worker through shared buffers."""
        other = copy(self)
        other.buffers = buffers
        return other

    def in_threads(self) -> BatchFetcher:
        """A copy for several threads at once, which never seeds the global random generators: all threads share them,
        the training's included. `sample_rng` works as ever.
        """
        other = copy(self)
        other._in_threads = True
        return other

    def load(
        self, request: BatchRequest, worker: int | None = None, abandoned: Callable[[], bool] = lambda: False
    ) -> Batch:
        """The batch in this process's memory; errors of samples are in its info.

        Args:
            worker: number of the thread, None for the main one.
            abandoned: called between samples; true when the batch is no longer needed.
        """
        watch = Watch.start(self._computed)
        data, error = None, None
        try:
            seeds = nullcontext() if self._in_threads else sample_seeds()
            data = self._load(request, self._pool.empty, seeds, abandoned)
        except _Failed as failed:
            error = failed.error
            error.worker = worker
        except BaseException:
            watch.end()
            raise
        timing = watch.stop(MAIN_THREAD if worker is None else worker)
        return Batch(data, BatchInfo(request, timing, nbytes(data), error, self._slow(watch, request)))

    def __getitems__(self, request: BatchRequest) -> Batch:
        """The batch as a worker process sends it."""
        worker_info = get_worker_info()
        assert worker_info is not None
        assert self.buffers is not None
        worker = worker_info.id
        watch = Watch.start(self._computed)
        data, size, error = None, 0, None
        writer = self._writer = self._writer or BufferWriter(self.buffers, worker)
        writer.begin()
        try:
            data = self._load(request, writer.empty)
            with stage("handover"):
                size = nbytes(data)
                data = writer.finish(data)
                writer.leave(self._check_picklable(data, request))
        except _Failed as failed:
            data, error = None, failed.error
            error.worker = worker
            writer.drop()
        return Batch(data, BatchInfo(request, watch.stop(worker), size, error, self._slow(watch, request)))

    def _slow(self, watch: Watch, request: BatchRequest) -> Sequence[tuple[int, int]]:
        times = watch.samples_ns
        return self._slowest.add(request.indices.tolist(), times) if len(times) == len(request.indices) else ()

    def _load(
        self,
        request: BatchRequest,
        empty: Empty,
        seeds: AbstractContextManager[None] | None = None,
        abandoned: Callable[[], bool] = lambda: False,
    ) -> Any:
        if self._load_batch is not None:
            try:
                batch = self._load_batch(request.indices, empty)
            except (Exception, SystemExit) as error:
                raise _Failed(self._errors.batch(request, error)) from None
            if batch is not None:
                return batch
        # the main process's random numbers are for training: loading must not change them
        with seeds or nullcontext():
            return self._load_samples(request, empty, abandoned)

    def _load_samples(self, request: BatchRequest, empty: Empty, abandoned: Callable[[], bool]) -> Any:
        self.came_one_by_one = True
        if self._getitems is None:
            samples = self._one_by_one(request, abandoned)
        else:
            samples = self._together(request, self._getitems)
        try:
            with stage("collate"):
                return self._collated(samples, request, empty)
        except SampleError as error:
            error.__cause__ = error.__context__ = None
            raise _Failed(error) from None
        except (Exception, SystemExit) as error:
            raise _Failed(self._errors.collating(request, error)) from None

    def _collated(self, samples: list[Any], request: BatchRequest, empty: Empty) -> Any:
        if not self.batched:
            return self.collate(samples[0])
        if self.collate is not default_collate:
            return self.collate(samples)
        if any(sample is None for sample in samples):
            raise self._errors.nothing(request, samples)
        if (mismatch := self._errors.mismatch(request, samples)) is not None:
            raise mismatch
        with torch.no_grad():  # in a worker, and only there, it could not collate what requires a gradient
            return stacked(samples, empty)

    def _one_by_one(self, request: BatchRequest, abandoned: Callable[[], bool]) -> list[Any]:
        samples, key, times, begin = [], b"", [], clock_ns()
        stored = self._stored(request)
        mark = clock_ns()
        each = (mark - begin) // len(request.indices)  # of reading them together, in ns
        seeds = None if self._in_threads else self._seeds
        if seeds is not None:
            seeds.begin()
        for index, ID, X in zip(request.indices.tolist(), self._IDs(request), stored, strict=True):
            if abandoned():
                raise _Failed(SampleError(f"batch of {self._errors.named(request)}: the loader was closed"))
            key = self._key(request.epoch, index, ID)
            try:
                samples.append(self._one(index, X, key, seeds))
            # StopIteration would end the epoch early without a word, SystemExit the worker
            except (Exception, SystemExit) as error:
                raise _Failed(self._errors.sample(ID, error)) from None
            now = clock_ns()
            times.append(now - mark + each)
            mark = now
        samples_took(times)
        if seeds is not None and key:
            seeds.finish(key)
        return samples

    def _stored(self, request: BatchRequest) -> Sequence[Tensor | None]:
        """The stored part of each sample, read together; None for each where the dataset reads samples itself."""
        count = len(request.indices)
        if self._parts is None or count == 1:
            return [None] * count
        try:
            found = self._parts[0](request.indices, self._pool.empty)
        except (Exception, SystemExit):  # the sample that is at fault fails again by itself
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
        return self.dataset[index]  # read again, as X may have been changed

    def _together(self, request: BatchRequest, getitems: Callable[[list[int]], Any]) -> list[Any]:
        indices: list[int] = request.indices.tolist()
        try:
            self._name([self._key(request.epoch, index, self._errors.ID(index)) for index in indices])
            samples = list(getitems(indices))
        except (Exception, SystemExit) as error:
            raise _Failed(self._culprit(request, getitems) or self._errors.batch(request, error)) from None
        if len(samples) != len(indices):
            raise _Failed(self._errors.count(request, len(samples)))
        return samples

    def _culprit(self, request: BatchRequest, getitems: Callable[[list[int]], Any]) -> SampleError | None:
        """The error of the first sample that also fails alone."""
        for index in request.indices.tolist():
            try:
                self._name([self._key(request.epoch, index, self._errors.ID(index))])
                getitems([index])
            except (Exception, SystemExit) as error:
                return self._errors.sample(self._errors.ID(index), error, "__getitems__")
        return None

    def _name(self, keys: list[bytes]) -> None:
        name_samples(keys)
        if not self._in_threads:
            seed_globals(keys[0])

    def _IDs(self, request: BatchRequest) -> list[str]:
        if isinstance(self.list_IDs, IDs):
            return self.list_IDs.at(request.indices)
        return [self._errors.ID(index) for index in request.indices.tolist()]

    def _key(self, epoch: int, index: int, ID: str) -> bytes:
        return sample_key(self.seed, epoch, ID, 0 if self.occurrence is None else int(self.occurrence[index]))

    def _check_picklable(self, batch: Any, request: BatchRequest) -> list[Tensor | torch.UntypedStorage]:
        """The tensors that are sent as they are; of sparse and nested ones and of subclasses, their storages.

        Fails where a batch cannot be pickled: torch would print a traceback and wait for it without end.
        """
        try:
            probe = _Probe(io.BytesIO())
            probe.dump(batch)
        except Exception as error:
            raise _Failed(self._errors.sending(request, error)) from None
        return probe.tensors


class _Probe(ForkingPickler):
    """Pickles all but the data of tensors and arrays, to see whether a batch can be sent."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.tensors: list[Tensor | torch.UntypedStorage] = []

    def persistent_id(self, obj: Any) -> int | None:
        if isinstance(obj, Tensor):
            if obj.requires_grad and not obj.is_leaf:
                raise ValueError("a tensor carries its gradient's history: detach() it")
            if type(obj) not in (Tensor, Parameter) or obj.layout != torch.strided or obj.is_nested:
                return None  # its parts come here, too
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
    """For each index, how often its ID occurs before it; None where no ID occurs twice, as in every catalog."""
    if not isinstance(names, (list, tuple, IDs)):  # computed, as of a generated dataset of any size
        return None
    # hashes take far less memory than a set of names; equal ones are compared exactly below
    hashes = np.fromiter(map(hash, names), np.int64, count=len(names))
    hashes.sort()
    if not (hashes[1:] == hashes[:-1]).any():
        return None
    counts: dict[str, int] = {}
    result = np.empty(len(names), dtype=np.int64)
    for index, name in enumerate(names):
        result[index] = counts[name] = counts.get(name, -1) + 1
    return result
