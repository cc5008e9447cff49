"""Errors of a batch that cannot be loaded: which sample, its file, what happened, what to do."""

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
from feedrate.loader.batch import BatchRequest
from feedrate.loader.digest import leaves

_ARRAYS = (Tensor, np.ndarray)
_FLAT = (*_ARRAYS, int, float, bool, str)


class SampleErrors:
    """Errors of one dataset. Methods that take an exception are called while it is handled.

    Args:
        list_IDs: IDs by index, or None: then the index is the ID.
        whole: whether whole batches are loaded by `load_batch`, otherwise by `__getitems__`.
    """

    def __init__(
        self, dataset: Dataset[Any], list_IDs: Sequence[str] | None, collate: Callable[[Any], Any], whole: bool
    ) -> None:
        self._dataset, self._list_IDs, self._collate, self._whole = dataset, list_IDs, collate, whole

    @property
    def name(self) -> str:
        """Of the user's class."""
        return type(unwrapped(self._dataset)[0]).__name__

    def ID(self, index: int) -> str:
        return ID_at(self._list_IDs, index)

    def named(self, request: BatchRequest) -> str:
        """The first IDs of a batch."""
        IDs, count = [self.ID(index) for index in request.indices[:5].tolist()], len(request.indices)
        return ", ".join(map(repr, IDs)) + (f", ... ({count} in all)" if count > 5 else "")

    def batch(self, request: BatchRequest, error: BaseException) -> SampleError:
        """From loading a whole batch."""
        if isinstance(error, SampleError) and error.ID is not None:
            return self.sample(error.ID, error)
        name = f"{self.name}.{'load_batch' if self._whole else '__getitems__'}"
        return self._of_batch(request, f"{name} failed with {one_line(error)}", traceback.format_exc())

    def collating(self, request: BatchRequest, error: BaseException) -> SampleError:
        text = f"collating failed with {one_line(error)}; {self._remedy()}"
        return self._of_batch(request, text, traceback.format_exc())

    def sending(self, request: BatchRequest, error: BaseException) -> SampleError:
        """From pickling a batch in its worker."""
        text = f"cannot leave its worker ({one_line(error)}); {self._remedy()}, or set loader.num_workers=0"
        return self._of_batch(request, text, traceback.format_exc())

    def count(self, request: BatchRequest, returned: int) -> SampleError:
        """`__getitems__` returned another number of samples than requested."""
        text = f"returned {returned} samples for {len(request.indices)} indices; return one for each, in their order"
        return self._of_batch(request, f"{self.name}.__getitems__ {text}")

    def sample(self, ID: str, error: BaseException, method: str = "__getitem__") -> SampleError:
        """From loading one sample."""
        cause = traceback.format_exc()
        if isinstance(error, SampleError) and error.ID is not None:
            error.cause = error.cause or cause
            error.__cause__ = error.__context__ = None  # may not survive pickling; its text is in `cause`
            return error
        if not isinstance(error, UserError):
            error = UserError(f"{self.name}.{method} failed with {one_line(error)}")
        return self._of_sample(ID, error, cause)

    def nothing(self, request: BatchRequest, samples: list[Any]) -> SampleError:
        """One of the samples is None."""
        at = next(place for place, sample in enumerate(samples) if sample is None)
        error = UserError(f"{self.name} returned None; return the pair (X, y)")
        return self._of_sample(self.ID(int(request.indices[at])), error)

    def mismatch(self, request: BatchRequest, samples: list[Any]) -> SampleError | None:
        """The error of the first sample whose form is not the majority's; None if all have the same form."""
        if _flat_and_equal(samples):
            return None
        forms = [_form(sample) for sample in samples]
        if all(form == forms[0] for form in forms):
            return None
        usual = Counter(forms).most_common(1)[0][0]  # of equals the first, so the error depends on the batch alone
        at = next(i for i, form in enumerate(forms) if form != usual)
        other = self.ID(int(request.indices[forms.index(usual)]))
        text = f"{_difference(forms[at], usual)} sample {other!r}; make them alike, or take it out of the partition"
        return self._of_sample(self.ID(int(request.indices[at])), UserError(text))

    def _of_batch(self, request: BatchRequest, text: str, cause: str = "") -> SampleError:
        return SampleError(f"batch of {self.named(request)}: {text}", cause=cause)

    def _of_sample(self, ID: str, error: BaseException, cause: str = "") -> SampleError:
        found = sample_error(self._dataset, ID, error)
        found.cause = cause
        return found

    def _remedy(self) -> str:
        if self._collate is default_collate:
            return "return tensors of one shape, numbers or texts, or pass a collate_fn"
        return f"fix {getattr(self._collate, '__name__', 'collate_fn')}"


def _flat_and_equal(samples: list[Any]) -> bool:
    """The fast path: whether all are tuples of tensors, arrays, numbers and texts of the same form."""
    first = samples[0]
    if type(first) is not tuple or any(type(value) not in _FLAT for value in first):
        return False
    kinds = [(type(v), v.shape, v.dtype) if type(v) in _ARRAYS else (type(v), None, None) for v in first]
    for sample in samples:
        if type(sample) is not tuple or len(sample) != len(kinds):
            return False
        for value, (kind, shape, dtype) in zip(sample, kinds, strict=True):
            if type(value) is not kind or (shape is not None and (value.shape != shape or value.dtype != dtype)):
                return False
    return True


def _form(sample: Any) -> tuple[tuple[Any, ...], ...]:
    """Name, shape and dtype of each tensor or array of a sample, and the names of its other parts."""
    if isinstance(sample, (tuple, list)) and len(sample) == 2:
        named = [*leaves(sample[0], "X"), *leaves(sample[1], "y")]
    else:
        named = [(name.lstrip("."), value) for name, value in leaves(sample)]
    return tuple(
        (name, value.shape, value.dtype) if isinstance(value, _ARRAYS) else (name, None, None) for name, value in named
    )


def _difference(form: tuple[tuple[Any, ...], ...], usual: tuple[tuple[Any, ...], ...]) -> str:
    for (name, shape, dtype), (usual_name, usual_shape, usual_dtype) in zip(form, usual, strict=False):
        if name != usual_name or (shape is None) != (usual_shape is None):
            break
        if shape != usual_shape:
            return f"{name} has shape {tuple(shape)}, not {tuple(usual_shape)} as in".lstrip()
        if dtype != usual_dtype:
            return f"{name} has dtype {dtype}, not {usual_dtype} as in".lstrip()
    return "is built differently from"


class _RemoteTraceback(Exception):
    """Carries a worker's traceback as text, for HYDRA_FULL_ERROR=1 and notebooks."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def with_cause(error: SampleError) -> SampleError:
    """The error as it is raised in the main process."""
    if error.cause:
        error.__cause__ = _RemoteTraceback(error.cause)
    return error
