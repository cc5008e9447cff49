"""Datasets of test_golden.py, importable by worker processes."""

from __future__ import annotations

from typing import Any

import torch

from feedrate.dataset import TensorFiles, sample_rng


class AddNoise:
    """A transform: adds Gaussian noise keyed by sample and epoch to X."""

    def __call__(self, X: torch.Tensor) -> torch.Tensor:
        return X.float() + torch.from_numpy(sample_rng().normal(0, 0.1, tuple(X.shape))).float()


class Augmented(TensorFiles):
    """Tensor files with the same noise on every sample."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Any]:
        X, y = super().__getitem__(index)
        return AddNoise()(X), y
