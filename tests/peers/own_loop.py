"""What a loop of one's own gets from the Loader; the libraries are to get the same."""

from __future__ import annotations

from typing import Any

from feedrate.loader import Loader
from loader.datasets import Drawn

SETTINGS: dict[str, Any] = {"batch_size": 5, "shuffle": True, "seed": 3}  # 8 batches of 37 samples


def values(batch: Any) -> list[list[float]]:
    """Index and random numbers of each sample."""
    X: list[list[float]] = batch[0].tolist()
    return X


def whole(epochs: int = 3) -> list[list[list[list[float]]]]:
    """Epochs of batches."""
    loader = Loader(Drawn(), **SETTINGS)
    return [[values(batch) for batch in loader] for _ in range(epochs)]


def digest(epochs: int) -> str:
    loader = Loader(Drawn(), **SETTINGS)
    for _ in range(epochs):
        list(loader)
    return loader.order_digest()


def flat(epochs: list[list[Any]]) -> list[Any]:
    return [batch for epoch in epochs for batch in epoch]
