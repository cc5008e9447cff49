"""What labels mean: classes, numbers or vectors, and the tensors that hold them.

Which ID has which label is the catalog's affair.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from feedrate.errors import UserError

MANY = 20  # from so many classes on, about one for each sample is worth a note
_LARGEST = float(np.finfo(np.float32).max)
_FINITE = f"finite and at most {_LARGEST:.1e} in size"


@dataclass(frozen=True)
class Targets:
    """What a model has to predict.

    Attributes:
        task: 'classification' or 'regression'.
        classes: the JSON scalar that each class index stands for, or None for regression.
        num_outputs: number of classes, length of the vector, or 1 for a number.
        notes: sentences for the user about what is odd but no error.
    """

    task: str
    classes: tuple[Any, ...] | None
    num_outputs: int
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """A few words, such as '10 classes'."""
        if self.task == "classification":
            return f"{self.num_outputs} classes"
        return "a number to predict" if self.num_outputs == 1 else f"{self.num_outputs} numbers to predict"


def read_labels(
    labels: Mapping[str, Sequence[Any]], partition: Mapping[str, Sequence[str]], task: str = "auto"
) -> tuple[Targets, dict[str, Tensor]]:
    """Labels of every partition as one kind of tensor.

    Args:
        labels: JSON values by partition, aligned with `partition`.
        partition: the IDs, to name an offender.
        task: 'auto' takes vectors and floats with a fraction for regression, everything else for classes.

    Returns:
        What they are, and by partition (N,) int64 class indices, (N,) float32 numbers or (N, K) float32 vectors.

    Raises:
        UserError: naming the first ID whose label does not fit the others.
    """
    kinds = {type(value) for values in labels.values() for value in values}
    if wrong := kinds - {int, float, str, bool, list}:
        ID, value = _first(labels, partition, lambda value: type(value) in wrong)
        raise UserError(
            f"labels: ID {ID!r} has the label {_shown(value)}; "
            "give it a number, a text, true, false or a list of numbers, or take the ID out of the partition"
        )
    if list in kinds:
        return _vectors(labels, partition, task)
    numeric = kinds <= {int, float}
    if numeric and (float in kinds or task == "regression"):
        numbers = {name: _numbers(values, partition[name]) for name, values in labels.items()}
        if task == "regression" or (task == "auto" and any((v != np.floor(v)).any() for v in numbers.values())):
            return Targets("regression", None, 1), {
                name: torch.from_numpy(values.astype(np.float32)) for name, values in numbers.items()
            }
    elif task == "regression":
        ID, value = _first(labels, partition, lambda v: not _number(v))
        raise UserError(f"labels: ID {ID!r} has the label {_shown(value)}; dataset.task=regression needs numbers")
    elif float in kinds:
        if bad := _first_or_none(labels, partition, lambda v: type(v) is float and not _fits(v)):
            raise UserError(f"labels: ID {bad[0]!r} has the label {_shown(bad[1])}; labels must be {_FINITE}")
        if task == "auto" and (broken := _first_or_none(labels, partition, lambda v: type(v) is float and v % 1 != 0)):
            kind_counts = Counter(_number(value) for values in labels.values() for value in values)
            few = kind_counts[True] < kind_counts[False]
            ID, value = broken if few else _first(labels, partition, lambda v: not _number(v))
            others, wanted = ("no numbers", "no number") if few else ("numbers with a fraction", "numbers only")
            raise UserError(
                f"labels: ID {ID!r} has the label {_shown(value)}, while others are {others}; "
                f"give {wanted}, or set dataset.task=classification"
            )
    return _classes(labels, partition, kinds, task)


def _vectors(
    labels: Mapping[str, Sequence[Any]], partition: Mapping[str, Sequence[str]], task: str
) -> tuple[Targets, dict[str, Tensor]]:
    if task == "classification":
        ID, value = _first(labels, partition, lambda v: isinstance(v, list))
        raise UserError(
            f"labels: ID {ID!r} has the label {_shown(value)}; dataset.task=classification needs one class for each ID"
        )
    listed, first = _first(labels, partition, lambda v: isinstance(v, list))
    length = len(first)

    def odd(value: Any) -> bool:
        return (
            not isinstance(value, list)
            or len(value) != length
            or not all(type(x) in (int, float) and _fits(x) for x in value)
        )

    if length == 0:
        ID, _ = _first(labels, partition, lambda v: v == [])
        raise UserError(f"labels: ID {ID!r} has the label []; a vector needs at least one number")
    if bad := _first_or_none(labels, partition, odd):
        raise UserError(
            f"labels: ID {bad[0]!r} has the label {_shown(bad[1])}; as that of ID {listed!r} is a list of {length}, "
            f"each label must be a list of {length} numbers, {_FINITE}"
        )
    return Targets("regression", None, length), {
        name: torch.from_numpy(np.asarray(values, dtype=np.float32)) for name, values in labels.items()
    }


def _classes(
    labels: Mapping[str, Sequence[Any]], partition: Mapping[str, Sequence[str]], kinds: set[type], task: str
) -> tuple[Targets, dict[str, Tensor]]:
    numeric = kinds <= {int, float}
    notes = [] if numeric or len(kinds) == 1 else _odd_kinds(labels, partition)
    if not numeric and len(kinds) > 1:  # true is not 1 and "1" is not 1; each kind in its own order
        labels = {name: [(_kind(value), value) for value in values] for name, values in labels.items()}
    found = {name: set(values) for name, values in labels.items()}
    ordered = sorted(set().union(*found.values()))
    position = {value: index for index, value in enumerate(ordered)}
    names = tuple(_whole(value[1] if isinstance(value, tuple) else value) for value in ordered)
    if unseen := [_shown(name) for name, value in zip(names, ordered, strict=True) if value not in found["train"]]:
        listed = ", ".join(unseen[:5]) + (", ..." if len(unseen) > 5 else "")
        count = "1 class" if len(unseen) == 1 else f"{len(unseen):,} classes"
        notes.append(f"labels: {count} without a training sample ({listed}); the model cannot learn them")
    if len(ordered) == 1:
        notes.append(f"labels: every sample has the class {_shown(names[0])}, so there is nothing to learn")
    total = sum(map(len, labels.values()))
    if len(ordered) >= MANY and 2 * len(ordered) > total:
        quantity = "; dataset.task=regression takes them as quantities" if numeric and task == "auto" else ""
        notes.append(f"labels: {len(ordered):,} classes for {total:,} samples{quantity}")
    return Targets("classification", names, len(ordered), tuple(notes)), {
        name: torch.from_numpy(np.fromiter(map(position.__getitem__, values), dtype=np.int64, count=len(values)))
        for name, values in labels.items()
    }


def _odd_kinds(labels: Mapping[str, Sequence[Any]], partition: Mapping[str, Sequence[str]]) -> list[str]:
    """A note that names the first label of the rarest kind where texts, numbers, true and false are mixed."""
    counts = Counter(_kind(value) for values in labels.values() for value in values)
    if len(counts) == 1:
        return []
    rarest, count = counts.most_common()[-1]
    ID, value = _first(labels, partition, lambda v: _kind(v) == rarest)
    words = {"number": "numbers", "str": "texts", "bool": "true or false"}
    return [
        f"labels: {count:,} of {counts.total():,} are {words[rarest]}, the others are not: the first is that of ID "
        f"{ID!r}, {_shown(value)}; each is a class of its own"
    ]


def _numbers(values: Sequence[Any], list_IDs: Sequence[str]) -> np.ndarray:
    """(N,) float64, each within what float32 can hold."""
    try:
        numbers = np.fromiter(values, dtype=np.float64, count=len(values))
        wrong = np.flatnonzero(~(np.abs(numbers) <= _LARGEST))
    except OverflowError:  # a whole number beyond float64
        wrong = np.array([index for index, value in enumerate(values) if not _fits(value)])
    if len(wrong):
        index = int(wrong[0])
        shown = f"{_shown(values[index])} ({len(wrong):,} such labels in all)"
        raise UserError(f"labels: ID {list_IDs[index]!r} has the label {shown}; labels must be {_FINITE}")
    return numbers


def _fits(value: float) -> bool:
    return -_LARGEST <= value <= _LARGEST


def _number(value: Any) -> bool:
    return type(value) in (int, float)


def _kind(value: Any) -> str:
    return "number" if _number(value) else type(value).__name__


def _whole(value: Any) -> Any:
    """1 for 1.0, so that a class has one name however its labels are written."""
    return int(value) if type(value) is float and value.is_integer() else value


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _first_or_none(labels: Mapping[str, Sequence[Any]], partition: Mapping[str, Sequence[str]], odd: Any) -> Any:
    for name, values in labels.items():
        for ID, value in zip(partition[name], values, strict=True):
            if odd(value):
                return ID, value
    return None


def _first(labels: Mapping[str, Sequence[Any]], partition: Mapping[str, Sequence[str]], odd: Any) -> Any:
    found = _first_or_none(labels, partition, odd)
    assert found is not None
    return found
