"""Tiny datasets of the loader's tests, in a module of their own so that spawned workers can import them."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from feedrate.dataset import sample_rng

BAD = 11  # index of the sample that Faulty fails on


class Numbers(Dataset[Any]):
    """Sample i is ([i, i], i)."""

    def __init__(self, size: int = 37) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((2,), float(index)), index


class Augmented(Dataset[Any]):
    """Sample i holds i and a draw from each usual source of random numbers, and a second one from the first."""

    def __init__(self, list_IDs: list[str] | None = None, size: int = 37) -> None:
        self.list_IDs = list_IDs
        self.size = len(list_IDs) if list_IDs else size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        draws = [sample_rng().random(), float(torch.rand(())), random.random(), np.random.rand(), sample_rng().random()]
        return torch.tensor([index, *draws], dtype=torch.float64), index


class Drawn(Augmented):
    """Sample i holds i and draws from `sample_rng()` alone, as threads need it."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        draws = [sample_rng().random(), sample_rng().normal(), sample_rng().random()]
        return torch.tensor([index, *draws], dtype=torch.float64), index


class Whole(Numbers):
    """Sample i holds multiples of i, and a batch comes at once."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return index * torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64), index

    def load_batch(self, indices: np.ndarray, empty: Any) -> tuple[Tensor, Tensor]:
        X = empty((len(indices), 3), torch.float64)
        X[:] = torch.from_numpy(indices)[:, None] * torch.tensor([1.0, 0.5, 0.25])
        return X, torch.from_numpy(indices.copy())


class Recorded(Dataset[Any]):
    """Sample i is i; a file records each sample that is requested; BAD fails while `fails` exists."""

    def __init__(self, size: int, record: Path) -> None:
        self.size, self.record, self.fails = size, record, record.with_suffix(".fails")
        record.touch()

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        with self.record.open("a") as file:
            file.write(f"{index}\n")
        if index == BAD and self.fails.exists():
            raise ValueError("not any more")
        return index

    def requested(self) -> list[int]:
        """Indices of the requested samples, in the order in which they were recorded."""
        return [int(line) for line in self.record.read_text().splitlines()]


class Point(NamedTuple):
    place: Tensor
    name: str


class Formed(Dataset[Any]):
    """Sample i in one of the forms that default_collate knows."""

    def __init__(self, form: str) -> None:
        self.form = form

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> Any:
        forms = {
            "tensor": torch.tensor([index, index]),
            "number": index,
            "float": index / 2,
            "text": f"sample {index}",
            "numpy": np.array([index, 1.5]),
            "numpy number": np.float32(index),
            "dict": {"image": torch.tensor([index]), "name": f"{index}", "size": (index, 2.0)},
            "tuple": (torch.tensor(index), np.array([index]), f"{index}"),
            "list": [index, torch.tensor([index])],
            "namedtuple": Point(torch.tensor([index, 1]), f"{index}"),
        }
        return forms[self.form]


class TwoArguments(Exception):
    """Cannot be built again from its text alone."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} (code {code})")


class Unpicklable(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.hold = lambda: None


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Faulty(Dataset[Any]):
    """All samples are alike, but sample BAD does what `fault` says; samples have IDs and files."""

    def __init__(self, fault: str, size: int = 20, marker: Path | None = None) -> None:
        self.fault, self.marker = fault, marker
        self.list_IDs = [f"s/{i}" for i in range(size)]

    def __len__(self) -> int:
        return len(self.list_IDs)

    def path(self, ID: str) -> str:
        return f"/data/{ID}.pt"

    def __getitem__(self, index: int) -> Any:
        X, y = torch.zeros(3), torch.tensor(index)
        if index != BAD:
            return X, y
        match self.fault:
            case "value":
                raise ValueError("not a picture\nsecond line")
            case "key":
                return {}["missing"]
            case "two arguments":
                raise TwoArguments(7, "broken")
            case "unpicklable":
                raise Unpicklable("holds a lambda")
            case "unprintable":
                raise Unprintable
            case "stop":
                raise StopIteration
            case "exit":
                sys.exit(3)
            case "shape":
                return torch.zeros(4), y
            case "dtype":
                return X.double(), y
            case "nested":
                return X, {"box": torch.zeros(2), "name": "a"}
            case "structure":
                return X, y, y
            case "object":
                return X, object()
            case "none":
                return None
            case "hang":
                time.sleep(1.0)
            case "killed" if get_worker_info() and not self._marked():
                os.kill(os.getpid(), signal.SIGKILL)
            case "leaves" if get_worker_info():
                os._exit(3)
        return X, y

    def _marked(self) -> bool:
        """Whether this is the second time, and marks the first."""
        if self.marker is None or self.marker.exists():
            return self.marker is not None
        self.marker.touch()
        return False


class Stream(IterableDataset[int]):
    """Numbers below `size`, each from one worker, as PyTorch's documentation shows it."""

    def __init__(self, size: int = 20) -> None:
        self.size = size

    def __iter__(self) -> Iterator[int]:
        info = get_worker_info()
        return iter(range(self.size)) if info is None else iter(range(info.id, self.size, info.num_workers))


class Told(Dataset[Any]):
    """Sample i is the number that `tell` has set in this process's copy of the dataset, and the worker's number."""

    reported = 0

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[int, int]:
        info = get_worker_info()
        return self.reported, info.id if info else -1


mark = 0


class Origin(Dataset[Any]):
    """A sample says whether its process inherited this module's `mark`, which one started it, and which one it is."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[int, int, int]:
        return mark, os.getppid(), os.getpid()


def tell(worker_id: int) -> None:
    """A worker_init_fn that reaches the worker's copy of the dataset, as PyTorch's documentation shows it."""
    info = get_worker_info()
    assert info is not None
    info.dataset.reported = 100 + worker_id


def fail_to_start(worker_id: int) -> None:
    raise OSError("no licence")


def total(samples: list[Any]) -> Tensor:
    """A collate_fn: the sum of the X of a batch, with randomness of its own."""
    return torch.stack([X for X, _ in samples]).sum(0) + torch.rand(())


class Blocks(Dataset[Any]):
    """Sample i is `nbytes` bytes of i, and what it holds besides reaches the workers too."""

    def __init__(self, size: int, nbytes: int, held: Any = None) -> None:
        self.size, self.nbytes, self.held = size, nbytes, held

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if isinstance(self.held, list):
            len(self.held[index % len(self.held)])  # as looking up a path does
        return torch.full((self.nbytes,), index % 251, dtype=torch.uint8), 0
