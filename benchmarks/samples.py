"""Files that no whole batch can be made of: with a transform, or each of its own length; beside torch's DataLoader.

Contenders take turns within each round, and the rates of a round are compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from figures import markdown, spread
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

ROOT = Path(__file__).resolve().parents[1]
BATCH, ROUNDS, SECONDS, AHEAD = 64, 7, 0.5, 6
WORKERS = (("inline", 0), ("thread", 2), ("process", 2))


def flipped(X: Tensor) -> Tensor:
    """An augmentation with random numbers that belong to the sample."""
    from feedrate.dataset import sample_rng

    return X.flip(-1) if sample_rng().random() < 0.5 else X


def flipped_by_torch(X: Tensor) -> Tensor:
    """The same as it is usually written."""
    return X.flip(-1) if torch.rand(()) < 0.5 else X


class Transformed(Dataset[Any]):
    """A dataset whose X goes through a transform, None for none."""

    def __init__(self, data: Any, transform: Callable[[Tensor], Tensor] | None) -> None:
        self.data, self.transform = data, transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        X, y = self.data[index]
        return (X if self.transform is None else self.transform(X)), y


def run() -> str:
    from peers.sets import SETS, make_set, pad
    from peers.torchs import Files

    from feedrate.dataset import TensorFiles
    from feedrate.loader import Loader

    torch.set_num_threads(1)
    rows = []
    for of, transform, torchs in (
        (SETS[0], flipped, flipped_by_torch),
        (SETS[1], flipped, flipped_by_torch),
        (SETS[2], None, None),
    ):
        home = make_set(of, ROOT / "data/peers")
        collate: dict[str, Any] = {"collate_fn": pad} if of.ragged else {}
        contenders: dict[str, Iterable[Any]] = {}
        for engine, workers in WORKERS:
            options = {**collate, "num_workers": workers, "persistent_workers": workers > 0}
            data = TensorFiles(of.list_IDs, of.labels, home / "pt", transform)
            chosen = {"engine": engine} if workers else {}
            contenders[f"{engine} {workers}"] = Loader(data, BATCH, True, seed=0, **options, **chosen)
            if engine != "thread":
                contenders[f"torch {workers}"] = DataLoader(
                    Transformed(Files(home / "pt", of), torchs), BATCH, True, **options
                )
        rates = _measured(contenders)
        best = [max(rates["torch 0"][number], rates["torch 2"][number]) for number in range(ROUNDS)]
        what = "each of its own length" if of.ragged else "with a transform"
        for name, found in rates.items():
            times = [rate / other for rate, other in zip(found, best, strict=True)]
            rows.append((f"{of.name}, {what}", name, spread(found, 0), spread(times, 2)))
    return markdown(["files", "loader, workers", "samples/s", "x torch's better one"], rows)


class Taker:
    """Takes batches of a loader, epoch after epoch; those made ahead while others were measured do not count."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.batches = self._endless(loader)
        for _ in loader:  # files of each kind are learned
            pass

    @staticmethod
    def _endless(loader: Iterable[Any]) -> Iterator[Any]:
        while True:
            yield from loader

    def samples_per_s(self) -> float:
        for _ in range(AHEAD):
            next(self.batches)
        samples, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < SECONDS:
            samples += len(next(self.batches)[1])
        return samples / (time.perf_counter() - begin)


def _measured(contenders: dict[str, Iterable[Any]]) -> dict[str, list[float]]:
    """Samples per second of each in each round."""
    takers = {name: Taker(loader) for name, loader in contenders.items()}
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(ROUNDS):
        for name, take in list(takers.items())[:: 1 if number % 2 else -1]:
            rates[name].append(take.samples_per_s())
    for loader in contenders.values():
        if hasattr(loader, "close"):
            loader.close()
    return rates
