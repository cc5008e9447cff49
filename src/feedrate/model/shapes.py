"""The sample shapes of models of images."""

from __future__ import annotations

from collections.abc import Sequence

from feedrate.errors import UserError


def image_shape(model: str, sample_shape: Sequence[int]) -> tuple[int, int, int]:
    """`sample_shape` as (C, H, W), where (H, W) counts as one channel; a UserError for any other shape."""
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
