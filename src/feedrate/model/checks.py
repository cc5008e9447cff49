"""What a model asks of its settings and of its samples, said before any weight is made.

Not the schema of the configuration (that is feedrate.config): these serve a notebook without Hydra too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from feedrate.errors import UserError


def whole_number(key: str, value: object, *, least: int) -> int:
    """`value` as an int; a UserError that names `key` where it is none or is below `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{key}={value}: must be a whole number of at least {least}")
    return value


def whole_numbers(key: str, value: object, *, least: int, may_be_empty: bool) -> list[int]:
    """`value`, a list or OmegaConf list, as a list of ints of at least `least`; otherwise a UserError."""
    entries = list(value) if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else None
    if (
        entries is None
        or not (entries or may_be_empty)
        or any(not isinstance(entry, int) or isinstance(entry, bool) or entry < least for entry in entries)
    ):
        empty = ", and may be empty ([])" if may_be_empty else ", with one entry or more"
        raise UserError(f"{key}={value}: must be a list of whole numbers of at least {least}{empty}, such as [32,64]")
    return entries


def dropout_probability(value: object) -> float:
    """`value` as the probability that a unit is dropped, 0 <= p < 1; otherwise a UserError."""
    number = _real(value)
    if not 0 <= number < 1:
        raise UserError(f"model.dropout={value}: must be a number with 0 <= dropout < 1; 0 switches it off")
    return number


def milliseconds(key: str, value: object) -> float:
    """`value` as a finite duration in ms of at least 0; otherwise a UserError that names `key`."""
    number = _real(value)
    if not 0 <= number < math.inf:
        raise UserError(f"{key}={value}: must be a number of milliseconds of at least 0; 0 means no waiting")
    return number


def _real(value: object) -> float:
    """`value` as a float; NaN, which is in no range, where it is no number."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def sample_elements(model: str, sample_shape: Sequence[int]) -> int:
    """The number of values in one sample (1 for a scalar, of shape `()`); none is a UserError."""
    elements = math.prod(sample_shape)
    if elements < 1:
        shape = tuple(sample_shape)
        raise UserError(f"model={model}: samples of shape {shape} hold no value; check the data set")
    return elements


def image_shape(model: str, sample_shape: Sequence[int]) -> tuple[int, int, int]:
    """`sample_shape` as (C, H, W), where (H, W) counts as one channel; any other shape is a UserError."""
    sample_elements(model, sample_shape)
    match tuple(sample_shape):
        case (height, width):
            return 1, height, width
        case (channels, height, width):
            return channels, height, width
        case other:
            raise UserError(
                f"model={model}: samples have shape {other}, but {model} needs (C, H, W) or (H, W); "
                "model=mlp takes any shape"
            )
