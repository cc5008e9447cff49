"""What happens where a batch is made: in a worker, or in the main process without workers.

Names each sample before it is loaded, so that its random numbers are its own, and turns errors into values.
"""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, default_collate, get_worker_info

from feedrate.dataset.rng import name_sample, sample_seeds
from feedrate.errors import SampleError, UserError


@dataclass(frozen=True)
class Ticket:
    """An order for one batch.

    Attributes:
        epoch: travels with the batch, since persistent workers hold a stale copy of everything else.
        start, stop: positions of the global batch in the epoch's order.
        indices: (n,) int64, the samples of this rank's part.
    """

    epoch: int
    start: int
    stop: int
    indices: np.ndarray


@dataclass(frozen=True)
class Receipt:
    """What came of a ticket; travels back with the batch as plain values, since each tensor costs a descriptor.

    Attributes:
        ticket: the order, as the worker read it.
        load_ns: nanoseconds that making the batch took.
        worker: number of the worker, None for the main process.
        error: what went wrong; the batch is None then.
    """

    ticket: Ticket
    load_ns: int
    worker: int | None
    error: SampleError | None = None


class Samples(Dataset[Any]):
    """The user's dataset, asked for a whole ticket through PyTorch's batched protocol `__getitems__`.

    Args:
        dataset: map-style.
        seed: of the loader.
        list_IDs: IDs by index, or None: then the index is the ID.
        occurrence: how often the ID at an index has occurred before it, or None where IDs are unique.
        collate: makes a batch of a list of samples; None returns the one sample of the ticket.
        uniform: whether to demand one shape and dtype of all samples, as default_collate needs it.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        seed: int,
        list_IDs: Sequence[str] | None,
        occurrence: np.ndarray | None,
        collate: Callable[[Any], Any],
        batched: bool,
    ) -> None:
        self.dataset, self.seed, self.list_IDs, self.occurrence = dataset, seed, list_IDs, occurrence
        self.collate, self.batched = collate, batched

    def __getitems__(self, ticket: Ticket) -> tuple[Any, Receipt]:
        """The batch and its receipt; never raises for what a sample does."""
        info = get_worker_info()
        begin = time.perf_counter_ns()
        batch, error = None, None
        # the main process's own random numbers are for training: loading must leave them as they were
        with nullcontext() if info else sample_seeds():
            try:
                batch = self._make(ticket)
            except _Failed as failed:
                error = failed.error
        worker = info.id if info else None
        if error is not None:
            error.worker = worker
        return batch, Receipt(ticket, time.perf_counter_ns() - begin, worker, error)

    def _make(self, ticket: Ticket) -> Any:
        samples = []
        for index in ticket.indices.tolist():
            ID = str(index) if self.list_IDs is None else self.list_IDs[index]
            try:
                name_sample(self.seed, ticket.epoch, ID, 0 if self.occurrence is None else int(self.occurrence[index]))
                samples.append(self.dataset[index])
            except Exception as error:  # StopIteration too: it would end the epoch early, silently
                raise _Failed(self._describe(ID, error)) from None
        try:
            if not self.batched:
                return self.collate(samples[0])
            if self.collate is default_collate and (odd := _odd_one_out(samples)):
                raise self._mixed(ticket, *odd)
            return self.collate(samples)
        except SampleError as error:
            raise _Failed(error) from None
        except Exception as error:
            IDs = self._named(ticket)
            text = f"batch of {IDs}: collating failed with {_one_line(error)}; {_remedy(self.collate)}"
            raise _Failed(SampleError(text, cause=traceback.format_exc())) from None

    def _describe(self, ID: str, error: Exception) -> SampleError:
        cause = traceback.format_exc()
        if isinstance(error, SampleError):
            error.cause = error.cause or cause
            error.__cause__ = error.__context__ = None  # may not survive pickling; its text is in `cause`
            return error
        path = _path(self.dataset, ID)
        where = f"sample {ID!r}" + (f" ({path})" if path else "")
        if isinstance(error, UserError):
            return SampleError(f"{where}: {error}", ID=ID, path=path, cause=cause)
        name = type(_innermost(self.dataset)).__name__
        text = f"{where}: {name}.__getitem__ failed with {_one_line(error)}"
        return SampleError(text, ID=ID, path=path, cause=cause)

    def _mixed(self, ticket: Ticket, odd: int, other: int, difference: str) -> SampleError:
        IDs = [str(i) if self.list_IDs is None else self.list_IDs[i] for i in ticket.indices.tolist()]
        path = _path(self.dataset, IDs[odd])
        where = f"sample {IDs[odd]!r}" + (f" ({path})" if path else "")
        text = f"{where}: {difference} as in sample {IDs[other]!r}; make them alike, or take it out of the partition"
        return SampleError(text, ID=IDs[odd], path=path)

    def _named(self, ticket: Ticket) -> str:
        IDs = [str(i) if self.list_IDs is None else self.list_IDs[i] for i in ticket.indices[:5].tolist()]
        return ", ".join(map(repr, IDs)) + (", ..." if len(ticket.indices) > 5 else "")


class _Failed(Exception):
    def __init__(self, error: SampleError) -> None:
        super().__init__(str(error))
        self.error = error


def passed_on(made: Any) -> Any:
    """The inner DataLoader's collate function: the batch is made already."""
    return made


def _odd_one_out(samples: list[Any]) -> tuple[int, int, str] | None:
    """Index of the first sample unlike the majority, index of one of the majority, and the difference in words."""
    forms = [_form(sample) for sample in samples]
    if all(form == forms[0] for form in forms):
        return None
    usual = Counter(forms).most_common(1)[0][0]  # of equals the first, so the answer depends on the batch alone
    odd = next(i for i, form in enumerate(forms) if form != usual)
    difference = "has another structure, not that"
    for mine, theirs in zip(forms[odd], usual, strict=False):
        if mine != theirs:
            name = f"{mine[0]} " if mine[0] else ""
            if mine[1] != theirs[1]:
                difference = f"{name}has shape {mine[1]}, not {theirs[1]}"
            else:
                difference = f"{name}has dtype {mine[2]}, not {theirs[2]}"
            break
    return odd, forms.index(usual), difference


def _form(sample: Any) -> tuple[tuple[Any, ...], ...]:
    """Name, shape and dtype of each tensor or array of a sample."""
    if isinstance(sample, (Tensor, np.ndarray)):
        return (("", tuple(sample.shape), str(sample.dtype)),)
    if isinstance(sample, (tuple, list)):
        names = ("X", "y") if len(sample) == 2 else tuple(str(i) for i in range(len(sample)))
        pairs = zip(names, sample, strict=True)
    elif isinstance(sample, dict):
        pairs = zip(map(str, sample), sample.values(), strict=True)
    else:
        return ()
    return tuple(
        (name, tuple(value.shape), str(value.dtype)) for name, value in pairs if isinstance(value, (Tensor, np.ndarray))
    )


def _path(dataset: Any, ID: str) -> str | None:
    found = getattr(dataset, "path", None)
    return str(found(ID)) if callable(found) else None


def _innermost(dataset: Any) -> Any:
    while hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    return dataset


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _remedy(collate: Callable[..., Any]) -> str:
    if collate is default_collate:
        return "return tensors of one shape, numbers or texts, or pass a collate_fn"
    return f"mend {getattr(collate, '__name__', 'collate_fn')}"
