"""Batches on the device: on a GPU one batch ahead on a stream of its own, so that copying overlaps the step.

What happens to a batch there (scaling, normalising) is the trainer's affair.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from feedrate.errors import UserError
from feedrate.loader.batch import BatchInfo
from feedrate.loader.device import has_streams, may_lack_float64, single
from feedrate.loader.digest import nbytes
from feedrate.loader.engines.processes import lost_worker
from feedrate.timing import Clock
from feedrate.timing.ahead import HostAhead, record


@dataclass(frozen=True)
class Batch:
    """One batch on its way into a step.

    Attributes:
        X, y: tensors on the device, (B, ...) and (B,) or (B, K).
        info: which samples it holds, None from a loader without a seed.
        nbytes: size as loaded.
    """

    X: Tensor
    y: Tensor
    info: BatchInfo | None
    nbytes: int


class ToDevice:
    """Iterates over `loader`'s batches on `device`, and tells the clock what was waiting and what was transfer.

    `check` sees each batch on the host, and may raise.

    On a GPU the next batch is fetched, and its copy issued on a stream of its own, while the present step runs there;
    the copy's source stays referenced until an event says that it is complete. Other devices copy in line.

    Raises:
        UserError: while iterating, for a batch that is no pair of tensors.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        device: torch.device,
        clock: Clock | None = None,
        check: Callable[[Batch], None] | None = None,
    ) -> None:
        self._loader, self._device, self._check = loader, device, check
        self._clock, self._lap = clock, clock.lap if clock is not None else _no_lap

    def __iter__(self) -> Iterator[Batch]:
        iterator = iter(self._loader)
        if self._clock is not None and hasattr(self._loader, "account_kept_by"):
            self._loader.account_kept_by(self._clock.epoch)
        if has_streams(self._device):
            # the clock bounds the steps ahead itself
            return self._ahead(iterator, copy_stream(self._device), HostAhead() if self._clock is None else None)
        return self._in_line(iterator)

    def _in_line(self, iterator: Iterator[Any]) -> Iterator[Batch]:
        held: list[Batch] = []
        while (host := self._next(iterator)) is not None:
            if self._device.type == "cpu" and host.X.is_cpu and host.y.is_cpu:
                held.append(host)  # torch, asked to move it nowhere, would let the loader's threads go first
            else:
                held.append(replace(host, X=host.X.to(self._device), y=host.y.to(self._device)))
                self._lap("transfer")
            del host
            yield held.pop()  # the loop alone has it then, and may let go of it while that is its own time

    def _ahead(self, iterator: Iterator[Any], copies: CopyStream, steps: HostAhead | None = None) -> Iterator[Batch]:
        host = self._next(iterator)
        ahead = copies.issue(host) if host is not None else None
        while ahead is not None:
            source, (batch, done) = host, ahead
            try:
                copies.hand_over(batch, done)
                self._lap("transfer")
                yield batch
                if steps is not None:
                    steps.issued(record(self._device))
                # the step of `batch` is issued by now, and runs while the next batch is waited for and copied
                host = self._next(iterator)
                ahead = copies.issue(host) if host is not None else None
            finally:
                with suppress(RuntimeError):  # of a device that has failed, as the next call to it says
                    done.synchronize()  # the copy lies before that step, so it costs nothing
                del source  # only now: its memory is filled again

    def _next(self, iterator: Iterator[Any]) -> Batch | None:
        try:
            found = next(iterator)
        except StopIteration:
            return None
        except (RuntimeError, OSError, EOFError) as error:
            if (lost := lost_worker(error)) is not None:  # of a loader of torch's
                raise lost from error
            raise
        finally:
            self._lap("wait")
        if not (isinstance(found, (tuple, list)) and len(found) == 2 and all(isinstance(v, Tensor) for v in found)):
            kinds = ", ".join(type(v).__name__ for v in found) if isinstance(found, (tuple, list)) else ""
            kind = type(found).__name__ + (f" of {kinds}" if kinds else "")
            raise UserError(
                f"loader: a batch is a {kind}; training needs the pair (X, y) of tensors, "
                "so return tensors or numbers from __getitem__, or (X, y) from collate_fn"
            )
        X, y = found
        batch = Batch(X, y, getattr(self._loader, "delivered", None), nbytes([X, y]))
        if self._check is not None:
            self._check(batch)
        if may_lack_float64(self._device):
            batch = replace(batch, X=single(X, self._device), y=single(y, self._device))
        return batch


def _no_lap(phase: str) -> None:
    """Nobody wants to know."""


def copy_stream(device: torch.device) -> CopyStream:
    """The one of that device: the caching allocator never gives a stream memory that was freed on another one."""
    index = torch.accelerator.current_device_index() if device.index is None else device.index
    return _copy_stream(torch.device(device.type, index))


@functools.cache
def _copy_stream(device: torch.device) -> CopyStream:
    return CopyStream(device)


class CopyStream:
    """Copies to an accelerator on a stream of their own, at the side of the steps."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.Stream(device)

    def issue(self, host: Batch) -> tuple[Batch, torch.Event]:
        """The batch on the device, and what tells when its content is there; `host` must be kept until then."""
        with self._stream:
            X = host.X.to(self._device, non_blocking=True)
            y = host.y.to(self._device, non_blocking=True)
            done = torch.Event(self._device)
            done.record(self._stream)
        return replace(host, X=X, y=y), done

    def hand_over(self, batch: Batch, done: torch.Event) -> None:
        """From now on a step may use the batch: it waits on the device, while the host goes on."""
        current = torch.accelerator.current_stream(self._device)
        current.wait_event(done)
        for tensor in (batch.X, batch.y):
            tensor.record_stream(current)  # or the allocator would hand its memory out while the step reads it
