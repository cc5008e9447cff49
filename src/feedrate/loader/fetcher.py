"""Loads one batch from the user's dataset, in any process or thread; an error is returned in the batch's info."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate, get_worker_info

from feedrate.dataset.formats.sample_reader import Empty
from feedrate.dataset.ids import IDs
from feedrate.dataset.rng import GlobalSeeds, name_samples, sample_key, sample_seeds, seed_globals
from feedrate.errors import SampleError
from feedrate.loader.batch import Batch, BatchInfo
from feedrate.loader.batch_protocol import getitems_of, load_batch_of, parts_of, stacked
from feedrate.loader.buffers import BufferPool, BufferSlots, BufferWriter
from feedrate.loader.digest import nbytes
from feedrate.loader.order import BatchRequest
from feedrate.loader.sample_errors import SampleErrors
from feedrate.timing.stages import MAIN_THREAD, Computed, Slowest, Watch, clock_ns, samples_took, stage


class BatchFetcher(Dataset[Any]):
    """Loads the batch of a request from a map-style dataset.

    It calls what the dataset has: `load_batch` or `load_X` (see batch_protocol.py), `__getitems__`, or `__getitem__`.
    With `batched=False` a request is one sample, which is passed to `collate` alone.
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
        self.whole = self._load_batch is not None  # whether the dataset can load whole batches
        self._getitems = getitems_of(dataset) if batched else None
        self._parts = parts_of(dataset)
        self.errors = SampleErrors(dataset, list_IDs, collate)
        self.buffers: BufferSlots | None = None  # through which batches leave a worker process
        self._writer: BufferWriter | None = None  # in a worker
        self._pool = BufferPool()
        self._seeds = GlobalSeeds()
        self._slowest, self._computed = Slowest(), Computed()
        self._in_threads = False
        self.came_one_by_one = False  # whether samples were loaded, rather than a whole batch at once

    def in_threads(self) -> BatchFetcher:
        """A copy for threads, which never seeds the global random generators: they share them with the training."""
        other = copy(self)
        other._in_threads = True
        return other

    def load(
        self,
        request: BatchRequest,
        worker: int | None = None,
        abandoned: Callable[[], bool] = lambda: False,
        writer: BufferWriter | None = None,
    ) -> Batch:
        """The batch, in this process's memory or in the writer's; errors of samples are in its info.

        `abandoned` is called between samples; it returns True once the batch is no longer needed.
        """
        watch = Watch.start(self._computed)
        data, size, error = None, 0, None
        slow: Sequence[tuple[int, int]] = ()
        try:
            restores = writer is None and not self._in_threads
            data = self._load(request, self._pool.empty if writer is None else writer.empty, restores, abandoned)
            size = nbytes(data)
            if writer is not None:
                with stage("handover"):
                    places = writer.finish(data)
                    try:
                        data = writer.send(places)
                    except Exception as refused:
                        raise _Failed(self.errors.sending(request, refused)) from None
        except _Failed as failed:
            data, error = None, failed.error
            error.worker = worker
            if writer is not None:
                writer.drop()
        except BaseException:
            watch.end()
            raise
        timing = watch.stop(MAIN_THREAD if worker is None else worker)
        if len(watch.samples_ns) == len(request.indices):
            slow = self._slowest.add(request.indices.tolist(), watch.samples_ns)
        return Batch(data, BatchInfo(request, timing, size, error, slow))

    def __getitems__(self, request: BatchRequest) -> Batch:
        """The batch as a worker process sends it; torch's DataLoader calls this with a whole request."""
        info = get_worker_info()
        assert info is not None
        assert self.buffers is not None
        writer = self._writer = self._writer or BufferWriter(self.buffers, info.id)
        writer.begin()
        return self.load(request, info.id, writer=writer)

    def _load(self, request: BatchRequest, empty: Empty, restores: bool, abandoned: Callable[[], bool]) -> Any:
        if self._load_batch is not None:
            try:
                batch = self._load_batch(request.indices, empty)
            except (Exception, SystemExit) as error:
                raise _Failed(self.errors.batch(request, error, "load_batch")) from None
            if batch is not None:
                return batch
        # the main process's random numbers are for training: loading must not change them
        with sample_seeds() if restores else nullcontext():
            self.came_one_by_one = True
            if self._getitems is None:
                samples = self._one_by_one(request, abandoned)
            else:
                samples = self._together(request, self._getitems)
            try:
                with stage("collate"):
                    return self._collated(samples, empty)
            except (Exception, SystemExit) as error:
                raise _Failed(self.errors.collating(request, samples, error)) from None

    def _collated(self, samples: list[Any], empty: Empty) -> Any:
        if not self.batched:
            return self.collate(samples[0])
        if self.collate is not default_collate:
            return self.collate(samples)
        with torch.no_grad():  # torch.stack(out=...), used in workers, refuses tensors that require grad
            return stacked(samples, empty)

    def _one_by_one(self, request: BatchRequest, abandoned: Callable[[], bool]) -> list[Any]:
        """The samples. time_limit.hanging_at finds the one that hangs by this function's name and its variable ID."""
        samples, key, times, begin = [], b"", [], clock_ns()
        stored = self._stored(request)
        mark = clock_ns()
        each = (mark - begin) // len(request.indices)  # of reading them together, in ns
        seeds = None if self._in_threads else self._seeds
        if seeds is not None:
            seeds.begin()
        for index, ID, X in zip(request.indices.tolist(), self._IDs(request), stored, strict=True):
            if abandoned():
                raise _Failed(SampleError(f"batch of {self.errors.named(request)}: the loader was closed"))
            key = self._key(request.epoch, index, ID)
            try:
                samples.append(self._one(index, X, key, seeds))
            # StopIteration would silently end the epoch early, SystemExit the worker
            except (Exception, SystemExit) as error:
                raise _Failed(self.errors.sample(ID, error)) from None
            now = clock_ns()
            times.append(now - mark + each)
            mark = now
        samples_took(times)
        if seeds is not None and key:
            seeds.finish(key)
        return samples

    def _stored(self, request: BatchRequest) -> Sequence[Tensor | None]:
        """The stored part of each sample, read together; None for each where the dataset reads samples itself."""
        count, found = len(request.indices), None
        if self._parts is not None and count > 1:
            with suppress(Exception, SystemExit):  # the faulty sample fails again when it is loaded alone
                found = self._parts[0](request.indices, self._pool.empty)
        if found is None:
            return [None] * count
        return found.unbind(0) if isinstance(found, Tensor) else found

    def _one(self, index: int, X: Tensor | None, key: bytes, seeds: GlobalSeeds | None) -> Any:
        """A sample; loaded again, seeded, if it drew from a global generator that was not seeded for it."""
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
        IDs, indices = self._IDs(request), request.indices.tolist()
        try:
            samples = self._named(request.epoch, IDs, indices, getitems)
            if len(samples) != len(indices):
                raise ValueError(f"{len(samples)} samples for {len(indices)} indices; return one for each, in order")
            return samples
        except (Exception, SystemExit) as error:
            for ID, index in zip(IDs, indices, strict=True):  # the first sample that also fails alone
                try:
                    self._named(request.epoch, [ID], [index], getitems)
                except (Exception, SystemExit) as alone:
                    raise _Failed(self.errors.sample(ID, alone, "__getitems__")) from None
            raise _Failed(self.errors.batch(request, error, "__getitems__")) from None

    def _named(self, epoch: int, IDs: list[str], indices: list[int], getitems: Callable[[list[int]], Any]) -> list[Any]:
        keys = [self._key(epoch, index, ID) for index, ID in zip(indices, IDs, strict=True)]
        name_samples(keys)
        if not self._in_threads:
            seed_globals(keys[0])
        return list(getitems(indices))

    def _IDs(self, request: BatchRequest) -> list[str]:
        if isinstance(self.list_IDs, IDs):
            return self.list_IDs.at(request.indices)
        return [self.errors.ID(index) for index in request.indices.tolist()]

    def _key(self, epoch: int, index: int, ID: str) -> bytes:
        return sample_key(self.seed, epoch, ID, 0 if self.occurrence is None else int(self.occurrence[index]))


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
    if len(np.unique(hashes)) == len(names):
        return None
    counts: dict[str, int] = {}
    result = np.empty(len(names), dtype=np.int64)
    for index, name in enumerate(names):
        result[index] = counts[name] = counts.get(name, -1) + 1
    return result
