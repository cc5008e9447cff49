"""What labels mean: classes, numbers or vectors, and the tensors that hold them.

Which ID has which label is the catalog's affair.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from feedrate.errors import UserError


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
            f"labels: ID {ID!r} has the label {json.dumps(value)}; a number, a text, true/false or a list fits"
        )
    if list in kinds:
        return _vectors(labels, partition, kinds, task)
    numeric = kinds <= {int, float}
    if float in kinds and (
        bad := _first_or_none(labels, partition, lambda v: type(v) is float and not math.isfinite(v))
    ):
        raise UserError(f"labels: ID {bad[0]!r} has the label {bad[1]}; labels must be finite")
    fraction = numeric and float in kinds and any(v != int(v) for values in labels.values() for v in values)
    if task == "regression" or (task == "auto" and fraction):
        if not numeric:
            ID, value = _first(labels, partition, lambda v: type(v) not in (int, float))
            raise UserError(
                f"labels: ID {ID!r} has the label {json.dumps(value)}; dataset.task=regression needs numbers"
            )
        return Targets("regression", None, 1), {
            name: torch.from_numpy(np.fromiter(values, dtype=np.float32, count=len(values)))
            for name, values in labels.items()
        }
    return _classes(labels, kinds)


def _vectors(
    labels: Mapping[str, Sequence[Any]], partition: Mapping[str, Sequence[str]], kinds: set[type], task: str
) -> tuple[Targets, dict[str, Tensor]]:
    if task == "classification":
        ID, value = _first(labels, partition, lambda v: isinstance(v, list))
        raise UserError(
            f"labels: ID {ID!r} has the label {json.dumps(value)[:60]}; dataset.task=classification needs scalars"
        )
    length = next(len(v) for values in labels.values() for v in values if isinstance(v, list))

    def odd(value: Any) -> bool:
        return (
            not isinstance(value, list)
            or len(value) != length
            or not all(type(x) in (int, float) and math.isfinite(x) for x in value)
        )

    if bad := _first_or_none(labels, partition, odd):
        shown = json.dumps(bad[1])[:60]
        raise UserError(f"labels: ID {bad[0]!r} has the label {shown}; each must be a list of {length} finite numbers")
    if length == 0:
        raise UserError("labels: the label lists are empty; a vector needs at least one number")
    assert kinds == {list}
    return Targets("regression", None, length), {
        name: torch.from_numpy(np.asarray(values, dtype=np.float32)) for name, values in labels.items()
    }


def _classes(labels: Mapping[str, Sequence[Any]], kinds: set[type]) -> tuple[Targets, dict[str, Tensor]]:
    def key(value: Any) -> Any:
        return value if len(kinds) == 1 or kinds == {int, float} else (type(value).__name__, value)

    # numbers and texts in their own order; true is not 1 and "1" is not 1, so kinds are kept apart
    found = {name: {key(value) for value in values} for name, values in labels.items()}
    ordered = sorted(set().union(*found.values()))
    position = {value: index for index, value in enumerate(ordered)}
    names = tuple(value[1] if isinstance(value, tuple) else value for value in ordered)
    notes = []
    if unseen := [str(v[1] if isinstance(v, tuple) else v) for v in ordered if v not in found["train"]]:
        listed = ", ".join(unseen[:5]) + (", ..." if len(unseen) > 5 else "")
        notes.append(f"labels: {len(unseen)} class(es) without a training sample ({listed})")
    if len(ordered) == 1:
        notes.append(f"labels: every sample has the class {names[0]!r}, so there is nothing to learn")
    return Targets("classification", names, len(ordered), tuple(notes)), {
        name: torch.from_numpy(np.fromiter((position[key(v)] for v in values), dtype=np.int64, count=len(values)))
        for name, values in labels.items()
    }


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
