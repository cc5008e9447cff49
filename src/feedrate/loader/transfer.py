"""Batches on the device; on an accelerator the next batch is copied on a stream of its own while the step runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from feedrate.errors import UserError
from feedrate.loader.batch import Batch
from feedrate.loader.torch_loader import with_info
from feedrate.system.device import has_streams, may_lack_float64, single
from feedrate.timing import Clock
from feedrate.timing.ahead import HostAhead, record


class ToDevice:
    """Iterates over the batches of a Loader, DataLoader or other iterable of pairs (X, y) on `device`.

    On an accelerator the next batch is fetched and its copy issued while the current step runs; the source of a copy
    stays referenced until an event says that the copy is complete. `check` is called with each batch on the host.
    """

    def __init__(
        self,
        loader: Any,
        device: torch.device,
        clock: Clock | None = None,
        check: Callable[[Batch], None] | None = None,
    ) -> None:
        self._loader, self._device, self._check = with_info(loader), device, check
        self._clock, self._lap = clock, clock.lap if clock is not None else lambda phase: None

    def __iter__(self) -> Iterator[Batch]:
        batches = self._loader.batches()
        if has_streams(self._device):
            # a clock bounds the steps ahead itself
            return self._ahead(batches, copy_stream(self._device), HostAhead() if self._clock is None else None)
        return self._in_line(batches)

    def _in_line(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        held: list[Batch] = []
        while (host := self._next(batches)) is not None:
            if self._device.type == "cpu" and host.X.is_cpu and host.y.is_cpu:
                held.append(host)  # `to` would release the GIL to the loader's threads
            else:
                held.append(Batch((host.X.to(self._device), host.y.to(self._device)), host.info))
                self._lap("transfer")
            del host
            yield held.pop()  # only the training loop holds it then, and can free it within its own time

    def _ahead(self, batches: Iterator[Batch], copies: CopyStream, steps: HostAhead | None = None) -> Iterator[Batch]:
        host = self._next(batches)
        ahead = copies.issue(host) if host is not None else None
        while ahead is not None:
            source, (batch, done) = host, ahead
            try:
                copies.hand_over(batch, done)
                self._lap("transfer")
                yield batch
                if steps is not None:
                    steps.issued(record(self._device))
                # the step of `batch` has been issued, and runs while the next batch is fetched and copied
                host = self._next(batches)
                ahead = copies.issue(host) if host is not None else None
            finally:
                with suppress(RuntimeError):  # of a device that has failed; the next call to it raises again
                    done.synchronize()  # costs nothing, since the copy precedes that step
                del source  # only now, as its memory is used again

    def _next(self, batches: Iterator[Batch]) -> Batch | None:
        """Training waits for its next batch here."""
        try:
            batch = next(batches)
        except StopIteration:
            return None
        finally:
            self._lap("wait")
        data = batch.data
        if not (isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(v, Tensor) for v in data)):
            raise UserError(
                f"loader: a batch is a {type(data).__name__}; training needs the pair (X, y) of tensors, "
                "so return tensors or numbers from __getitem__, or (X, y) from collate_fn"
            )
        if self._check is not None:
            self._check(batch)
        if may_lack_float64(self._device):
            batch.data = [single(tensor, self._device) for tensor in data]
        return batch


@functools.cache
def copy_stream(device: torch.device) -> CopyStream:
    """One for each device: the caching allocator does not reuse memory across streams."""
    return CopyStream(device)


class CopyStream:
    """Copies to an accelerator on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.Stream(device)

    def issue(self, host: Batch) -> tuple[Batch, torch.Event]:
        """The batch on the device and the event of its copy; `host` must be kept until then."""
        with self._stream:
            X = host.X.to(self._device, non_blocking=True)
            y = host.y.to(self._device, non_blocking=True)
            done = torch.Event(self._device)
            done.record(self._stream)
        return Batch((X, y), host.info), done

    def hand_over(self, batch: Batch, done: torch.Event) -> None:
        """Lets the step use the batch: it waits for the copy on the device, while the host continues."""
        current = torch.accelerator.current_stream(self._device)
        current.wait_event(done)
        for tensor in (batch.X, batch.y):
            tensor.record_stream(current)  # or the allocator would reuse its memory while the step reads it
