"""What is said when a batch cannot be made: which sample it was, where it lies, what happened, what to do.

When that is, is fetch.py's affair.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import Dataset, default_collate

from feedrate.dataset.probe import one_line
from feedrate.dataset.subset import ID_at, unwrapped
from feedrate.errors import SampleError, UserError
from feedrate.loader.batch import BatchRequest


class SampleErrors:
    """Words the errors of one dataset; each method that takes an exception is to be called while it is handled.

    Args:
        list_IDs: IDs by index, or None: then the index is the ID.
        whole: whether the dataset is asked for whole batches by `load_batch`, otherwise by `__getitems__`.
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

    def batch(self, request: BatchRequest, error: BaseException) -> SampleError:
        """A dataset failed that was asked for a whole batch."""
        if isinstance(error, SampleError) and error.ID is not None:
            return self.sample(error.ID, error)
        name = f"{self.name}.{'load_batch' if self._whole else '__getitems__'}"
        text = f"batch of {self.named(request)}: {name} failed with {one_line(error)}"
        return SampleError(text, cause=traceback.format_exc())

    def collating(self, request: BatchRequest, error: BaseException) -> SampleError:
        text = f"batch of {self.named(request)}: collating failed with {one_line(error)}; {self._remedy()}"
        return SampleError(text, cause=traceback.format_exc())

    def sending(self, request: BatchRequest, error: BaseException) -> SampleError:
        """A batch cannot leave its worker."""
        text = f"batch of {self.named(request)}: cannot leave its worker ({one_line(error)})"
        return SampleError(f"{text}; {self._remedy()}, or set loader.num_workers=0", cause=traceback.format_exc())

    def count(self, request: BatchRequest, found: int) -> SampleError:
        """`__getitems__` returned so many samples, which is not the number asked for."""
        wanted, name = len(request.indices), f"{self.name}.__getitems__"
        text = f"batch of {self.named(request)}: {name} returned {found} samples for {wanted} indices"
        return SampleError(f"{text}; return one for each, in their order")

    def sample(self, ID: str, error: BaseException, method: str = "__getitem__") -> SampleError:
        cause = traceback.format_exc()
        if isinstance(error, SampleError) and error.ID is not None:
            error.cause = error.cause or cause
            error.__cause__ = error.__context__ = None  # may not survive pickling; its text is in `cause`
            return error
        if isinstance(error, UserError):
            return self._of(ID, str(error), cause)
        return self._of(ID, f"{self.name}.{method} failed with {one_line(error)}", cause)

    def mixed(self, request: BatchRequest, odd: int, other: int, difference: str) -> SampleError:
        """The sample at place `odd` of a batch is not like the one at `other`."""
        like = self.ID(int(request.indices[other]))
        text = f"{difference} sample {like!r}; make them alike, or take it out of the partition"
        return self._of(self.ID(int(request.indices[odd])), text)

    def nothing(self, request: BatchRequest, samples: list[Any]) -> SampleError:
        """One of the samples is None."""
        at = next(place for place, sample in enumerate(samples) if sample is None)
        return self._of(self.ID(int(request.indices[at])), f"{self.name} returned None; return the pair (X, y)")

    def named(self, request: BatchRequest) -> str:
        """The first IDs of a batch."""
        IDs, count = [self.ID(index) for index in request.indices[:5].tolist()], len(request.indices)
        return ", ".join(map(repr, IDs)) + (f", ... ({count} in all)" if count > 5 else "")

    def _of(self, ID: str, text: str, cause: str = "") -> SampleError:
        path = self._path(ID)
        return SampleError(f"sample {ID!r}{f' ({path})' if path else ''}: {text}", ID=ID, path=path, cause=cause)

    def _path(self, ID: str) -> str | None:
        """The sample's file, where the dataset has a method `path(ID)` as TensorFiles does."""
        found = getattr(self._dataset, "path", None)
        try:
            return str(found(ID)) if callable(found) else None
        except Exception:  # a method of that name that means something else must not hide the error to be told
            return None

    def _remedy(self) -> str:
        if self._collate is default_collate:
            return "return tensors of one shape, numbers or texts, or pass a collate_fn"
        return f"mend {getattr(self._collate, '__name__', 'collate_fn')}"


class _RemoteTraceback(Exception):
    """Carries a worker's traceback as text, for HYDRA_FULL_ERROR=1 and notebooks."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def with_cause(error: SampleError) -> SampleError:
    """The error as it is raised in the main process."""
    if error.cause:
        error.__cause__ = _RemoteTraceback(error.cause)
    return error
