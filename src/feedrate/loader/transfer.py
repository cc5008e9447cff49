"""Batches on the device: on an accelerator one batch ahead on a stream of its own, so that copying overlaps the step.

What happens to a batch there (scaling, normalising) is the trainer's affair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from feedrate.loader.digest import nbytes
from feedrate.loader.fetch import Receipt
from feedrate.timing import Clock


@dataclass(frozen=True)
class Batch:
    """One batch on its way into a step.

    Attributes:
        X, y: tensors on the device, (B, ...) and (B,) or (B, K).
        receipt: which samples it holds, None from a loader without a seed.
        nbytes: size as loaded.
    """

    X: Tensor
    y: Tensor
    receipt: Receipt | None
    nbytes: int


class ToDevice:
    """Iterates over `loader`'s batches on `device`, and tells the clock what was waiting and what was transfer.

    `check` sees each batch on the host, and may raise.

    On an accelerator the copy of the next batch is issued before the present one is given out; its source stays
    referenced until an event says that the copy is complete.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        device: torch.device,
        clock: Clock | None = None,
        check: Callable[[Batch], None] | None = None,
    ) -> None:
        self._loader, self._device, self._clock, self._check = loader, device, clock, check

    def __iter__(self) -> Iterator[Batch]:
        iterator = iter(self._loader)
        if self._device.type == "cpu":
            return self._on_cpu(iterator)
        return self._ahead(iterator)

    def _on_cpu(self, iterator: Iterator[Any]) -> Iterator[Batch]:
        while (host := self._next(iterator)) is not None:
            self._lap("transfer")
            yield host

    def _ahead(self, iterator: Iterator[Any]) -> Iterator[Batch]:
        stream = torch.Stream(self._device)
        ahead = self._copy(self._next(iterator), stream)
        while ahead is not None:
            batch, done, _source = ahead
            current = torch.accelerator.current_stream(self._device)
            current.wait_event(done)  # the step waits on the device; the host goes on
            for tensor in (batch.X, batch.y):
                tensor.record_stream(current)  # or the allocator would hand its memory out while the step reads it
            self._lap("transfer")
            yield batch
            # the copy's source is kept until here: the event lies before the step in the stream
            following = self._copy(self._next(iterator), stream)
            done.synchronize()  # passed long ago, as the step behind it was issued: costs nothing
            ahead = following

    def _next(self, iterator: Iterator[Any]) -> Batch | None:
        found = next(iterator, None)
        self._lap("wait")
        if found is None:
            return None
        X, y = found
        batch = Batch(X, y, getattr(self._loader, "delivered", None), nbytes([X, y]))
        if self._check is not None:
            self._check(batch)
        return batch

    def _copy(self, host: Batch | None, stream: torch.Stream) -> tuple[Batch, torch.Event, Batch] | None:
        if host is None:
            return None
        with stream:
            X = host.X.to(self._device, non_blocking=True)
            y = host.y.to(self._device, non_blocking=True)
            done = torch.Event(self._device)
            done.record(stream)
        return Batch(X, y, host.receipt, host.nbytes), done, host

    def _lap(self, phase: str) -> None:
        if self._clock is not None:
            self._clock.lap(phase)
