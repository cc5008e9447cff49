"""Datasets that cannot be packed, each in its own way."""

from __future__ import annotations

from typing import Any

import torch

from feedrate.dataset import sample_rng


class Noisy:
    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(sample_rng().normal(0, 1, 3)), index % 2


class Odd:
    """One sample is unlike the others."""

    num_outputs = 2
    partitions = ("train", "validation")

    def __init__(self, partition: str, what: str) -> None:
        self.what = what

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        X, y = torch.full((2,), float(index)), index % 2
        if self.what == "other":
            return X + 1000, y
        if index != 9:
            return X, y
        if self.what == "error":
            raise ValueError("no such sample")
        odd = {
            "text": ("nine", y),
            "shape": (X.view(2, 1), y),
            "dtype": (X.long(), y),
            "y": (X, 1.0),
            "complex": (X.to(torch.complex64), y),
            "none": (X, y),
        }
        return odd[self.what]


class Halved:
    """A transform, as a configuration names it."""

    def __call__(self, X: torch.Tensor) -> torch.Tensor:
        return X.float() / 2


class Inverted:
    """A transform that leaves shape and dtype as they are."""

    def __call__(self, X: torch.Tensor) -> torch.Tensor:
        return 255 - X
