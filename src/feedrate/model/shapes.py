"""The sample shapes that the shipped models take."""

from __future__ import annotations

import math
from collections.abc import Sequence

from feedrate.errors import UserError


def sample_elements(model: str, sample_shape: Sequence[int]) -> int:
    """The number of values in one sample, 1 for the shape `()`; a UserError where there is none."""
    elements = math.prod(sample_shape)
    if elements < 1:
        raise UserError(f"model={model}: samples of shape {tuple(sample_shape)} hold no value; check the data set")
    return elements


def image_shape(model: str, sample_shape: Sequence[int]) -> tuple[int, int, int]:
    """`sample_shape` as (C, H, W), where (H, W) counts as one channel; a UserError for any other shape."""
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
