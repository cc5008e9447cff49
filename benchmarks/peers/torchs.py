"""Contenders that need torch alone: its DataLoader on files and in memory, and memcpy as the limit of the machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from peers.sets import Set, pad


class Files(Dataset[Any]):
    """A data set as in PyTorch's tutorials: one torch.load per sample."""

    def __init__(self, folder: Path, of: Set) -> None:
        self.folder, self.list_IDs, self.labels = str(folder), of.list_IDs, of.labels

    def __len__(self) -> int:
        return len(self.list_IDs)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        ID = self.list_IDs[index]
        return torch.load(f"{self.folder}/{ID}.pt", weights_only=True), self.labels[ID]


def open_files(home: Path, of: Set, batch_size: int, workers: int) -> Any:
    return DataLoader(
        Files(home / "pt", of), batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0,
        collate_fn=pad if of.ragged else None,
    )  # fmt: skip


def open_in_memory(home: Path, of: Set, batch_size: int, workers: int) -> Any:
    """A TensorDataset; a list of sequences where they differ in length."""
    if of.ragged:
        pairs: Any = [(X, y) for _, X, y in of.samples()]
        return DataLoader(pairs, batch_size, shuffle=True, num_workers=workers, collate_fn=pad)
    X, y = _all(of)
    return DataLoader(TensorDataset(X, y), batch_size, shuffle=True, num_workers=workers)


def open_memcpy(home: Path, of: Set, batch_size: int, workers: int) -> Any:
    """One copy per batch, of consecutive samples, into memory that is reused."""
    return _Copies(of, batch_size)


class _Copies:
    def __init__(self, of: Set, batch_size: int) -> None:
        self.batch_size, self.ragged = batch_size, of.ragged
        if of.ragged:  # padding is copied too, as it is part of the batch
            samples = [(X, y) for _, X, y in of.samples()]
            self.made = [pad(samples[at : at + batch_size]) for at in range(0, len(samples), batch_size)]
        else:
            self.X, self.y = _all(of)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.ragged:
            out = torch.empty(max(X.numel() for X, _ in self.made), dtype=self.made[0][0].dtype)
            for X, y in self.made:
                yield out[: X.numel()].view(X.shape).copy_(X), y.clone()
            return
        out = torch.empty((self.batch_size, *self.X.shape[1:]), dtype=self.X.dtype)
        for at in range(0, len(self.X), self.batch_size):
            part = self.X[at : at + self.batch_size]
            yield out[: len(part)].copy_(part), self.y[at : at + self.batch_size].clone()


def _all(of: Set) -> tuple[Tensor, Tensor]:
    X = torch.empty((of.size, *of.shape), dtype=of.dtype)  # type: ignore[arg-type]
    for index, (_, sample, _) in enumerate(of.samples()):
        X[index] = sample
    return X, torch.tensor([of.y(index) for index in range(of.size)])
