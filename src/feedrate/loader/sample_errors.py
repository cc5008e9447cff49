"""Errors of batches that cannot be loaded: the sample, its file, what happened, what to do."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from feedrate.dataset.probe import one_line, sample_error
from feedrate.dataset.subset import ID_at, unwrapped
from feedrate.errors import SampleError, UserError
from feedrate.loader.digest import leaves
from feedrate.loader.order import BatchRequest


class SampleErrors:
    """Makes the errors of one dataset. A method that takes an exception must be called while that is handled."""

    def __init__(self, dataset: Dataset[Any], list_IDs: Sequence[str] | None, collate: Callable[[Any], Any]) -> None:
        self._dataset, self._list_IDs, self._collate = dataset, list_IDs, collate
        self.name = type(unwrapped(dataset)[0]).__name__  # of the user's class

    def ID(self, index: int) -> str:
        """ID of a sample; its index where the dataset has no IDs."""
        return ID_at(self._list_IDs, index)

    def named(self, request: BatchRequest) -> str:
        """The first five IDs of a batch, as text."""
        IDs, count = [self.ID(index) for index in request.indices[:5].tolist()], len(request.indices)
        return ", ".join(map(repr, IDs)) + (f", ... ({count} in all)" if count > 5 else "")

    def batch(self, request: BatchRequest, error: BaseException, method: str) -> SampleError:
        """The error of a whole batch, which the dataset's `method` failed to load."""
        if isinstance(error, SampleError) and error.ID is not None:
            return self.sample(error.ID, error)
        return self.of_batch(request, f"{self.name}.{method} failed with {one_line(error)}")

    def collating(self, request: BatchRequest, samples: list[Any], error: BaseException) -> SampleError:
        """The error of collating; names the first sample whose form differs from most others'."""
        if isinstance(error, SampleError):
            error.__cause__ = error.__context__ = None
            return error
        if self._collate is default_collate:
            forms = [_form(sample) for sample in samples]
            usual = Counter(forms).most_common(1)[0][0]  # of equals the first: the error depends on the batch alone
            odd = next((at for at, form in enumerate(forms) if form != usual), None)
            if odd is not None:
                other, one = (self.ID(int(request.indices[at])) for at in (forms.index(usual), odd))
                text = f"is {forms[odd]}, and sample {other!r} is {usual}"
                return self._of_sample(one, UserError(f"{text}; make them alike, or take it out of the partition"))
        return self.of_batch(request, f"collating failed with {one_line(error)}; {self._remedy()}")

    def sending(self, request: BatchRequest, error: BaseException) -> SampleError:
        """The error of a batch that its worker cannot pickle."""
        text = f"cannot leave its worker ({one_line(error)}); {self._remedy()}, or set loader.num_workers=0"
        return self.of_batch(request, text)

    def sample(self, ID: str, error: BaseException, method: str = "__getitem__") -> SampleError:
        """The error of one sample, which the dataset's `method` failed to load."""
        cause = traceback.format_exc()
        if isinstance(error, SampleError) and error.ID is not None:
            error.cause = error.cause or cause
            error.__cause__ = error.__context__ = None  # may not survive pickling; its text is in `cause`
            return error
        if not isinstance(error, UserError):
            error = UserError(f"{self.name}.{method} failed with {one_line(error)}")
        return self._of_sample(ID, error, cause)

    def of_batch(self, request: BatchRequest, text: str) -> SampleError:
        """An error of a whole batch with this text and the traceback of the exception that is handled."""
        return SampleError(f"batch of {self.named(request)}: {text}", cause=traceback.format_exc())

    def _of_sample(self, ID: str, error: BaseException, cause: str = "") -> SampleError:
        found = sample_error(self._dataset, ID, error)
        found.cause = cause
        return found

    def _remedy(self) -> str:
        if self._collate is default_collate:
            return "return tensors of one shape, numbers or texts, or pass a collate_fn"
        return f"fix {getattr(self._collate, '__name__', 'collate_fn')}"


def _form(sample: Any) -> str:
    """What a sample consists of, such as 'X float32 (3, 64, 64), y number'."""
    pair = isinstance(sample, (tuple, list)) and len(sample) == 2
    named = [*leaves(sample[0], "X"), *leaves(sample[1], "y")] if pair else list(leaves(sample))
    return ", ".join(f"{name} {_kind(value)}".strip() for name, value in named)


def _kind(value: Any) -> str:
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return "number" if isinstance(value, (int, float)) else type(value).__name__
