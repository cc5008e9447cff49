"""Datasets as a user of the repository would write them, one for each way of doing it; test_build.py names them."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset

from feedrate.dataset import TensorFiles, sample_rng


class Squares(Dataset):
    """The least that a dataset can be."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return torch.tensor([index, index**2], dtype=torch.float32), index % 3


class Plain:
    """Without torch's base class, and with NumPy's arrays."""

    def __init__(self, size: int, channels: int = 1) -> None:
        self.size, self.channels = size, channels

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        assert type(index) is int  # a list of paths or a JSON file would not take anything else
        return np.full((self.channels, 2, 2), index % 256, dtype=np.uint8), np.int64(index % 2)


class TutorialDataset(Dataset):
    """Characterizes a dataset for PyTorch, as the tutorial has it."""

    def __init__(self, list_IDs, labels):
        self.labels = labels
        self.list_IDs = list_IDs

    def __len__(self):
        return len(self.list_IDs)

    def __getitem__(self, index):
        ID = self.list_IDs[index]
        X = torch.load("data/" + ID + ".pt")
        y = self.labels[ID]
        return X, y


class Forgetful(Dataset):
    """Takes IDs, and keeps them under another name."""

    suffix = None

    def __init__(self, list_IDs, labels, root, partition):
        self.names, self.y, self.root, self.partition = list(list_IDs), labels, root, partition

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        return torch.zeros(2), self.y[self.names[index]]


class Arrays(Dataset):
    """Files of another kind."""

    suffix = ".npy"

    def __init__(self, list_IDs, labels, root):
        self.list_IDs, self.labels, self.root = list_IDs, labels, root

    def __len__(self):
        return len(self.list_IDs)

    def __getitem__(self, index):
        ID = self.list_IDs[index]
        return np.load(f"{self.root}/{ID}.npy"), self.labels[ID]


class Doubled(TensorFiles):
    """Extends a shipped dataset and hands on what it does not know."""

    def __init__(self, *args, factor: float = 2.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.factor = factor

    def __getitem__(self, index):
        X, y = super().__getitem__(index)
        return X * self.factor, y


class Divided(Dataset):
    """Knows its partitions, its IDs and its number of classes."""

    num_outputs = 7

    def __init__(self, partition, seed, root="nowhere"):
        self.partition, self.seed, self.root = partition, seed, root
        self.list_IDs = [f"{partition}-{i}" for i in range(30 if partition == "train" else 6)]

    def __len__(self):
        return len(self.list_IDs)

    def __getitem__(self, index):
        return torch.zeros(3, 4, 4), index % 3


class Labelled(Dataset):
    """Returns the labels of its configuration, in turn."""

    def __init__(self, y: list[Any], size: int = 10, as_tensor: bool = False, states: Any = None) -> None:
        self.y, self.size, self.as_tensor = y, size, as_tensor
        if states is not None:
            self.num_outputs = states

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        y = self.y[index % len(self.y)]
        return torch.zeros(3, 4, 4), torch.tensor(y) if self.as_tensor else y


class Downloaded(Dataset):
    """Makes its own data on first use."""

    calls = 0

    def __init__(self, root, partition):
        self.values = torch.load(Path(root) / "all.pt")[partition]

    @classmethod
    def prepare(cls, root):
        cls.calls += 1
        root.mkdir(parents=True, exist_ok=True)
        torch.save({"train": torch.arange(8.0), "validation": torch.arange(4.0)}, root / "all.pt")

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        return self.values[index], 0.5


class Unprepared(Squares):
    @classmethod
    def prepare(cls, root):
        raise RuntimeError("the server said no\nand more")


class Preparing(Squares):
    """Has a method of that name that means something else."""

    def prepare(self):
        raise AssertionError


class Random(Dataset):
    """Uses every kind of random numbers."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        numbers = [random.random(), np.random.rand(), torch.rand(()).item(), sample_rng().random()]
        return torch.tensor(numbers), index % 2


class Cropped(TensorFiles):
    """Fails on samples that are too small."""

    def __getitem__(self, index):
        X, y = super().__getitem__(index)
        if X.shape[-1] < 4:
            raise ValueError(f"{X.shape[-1]} columns")
        return X, y


class Returning(Dataset):
    """Returns a given value, or raises it."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __len__(self):
        return 10

    def __getitem__(self, index):
        X = torch.zeros(2, 3)
        values = {
            "X alone": X,
            "complex": (torch.zeros(2, dtype=torch.complex64), 1),
            "elsewhere": (X.to("meta"), 1),
            "half": (X.half(), 1),
            "float as X": (0.5, 1),
            "three": (X, 1, 2),
            "dict": {"X": X, "y": 1},
            "dict as X": ({"image": X}, 1),
            "text as X": ("path.png", 1),
            "None as X": (None, 1),
            "objects as X": (np.array([None, "a"], dtype=object), 1),
            "number as X": (3, 1),
            "list": [X, 1],
        }
        if self.what in values:
            return values[self.what]
        raise ValueError("first line\nsecond line") if self.what == "two lines" else KeyError(self.what)


class Empty(Squares):
    def __len__(self):
        return 0


class Miscounting(Returning):
    """Its `__len__` returns a negative number."""

    def __len__(self):
        return -3  # noqa: PLE0303


class Lengthless(Dataset):
    def __getitem__(self, index):
        return torch.zeros(2), 0


class Streaming(IterableDataset):
    def __iter__(self):
        return iter([(torch.zeros(2), 0)])


class Misnumbered(Squares):
    list_IDs = ("a", "b")


class Failing(Squares):
    def __init__(self, size: int) -> None:
        raise RuntimeError(f"no licence for {size}\nsecond line")


class Scale:
    """A transform with a setting."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, X):
        return X * self.factor


class Augmented(Dataset):
    """Has a transform for each of its samples, and no partitions; draws its samples when it is built."""

    def __init__(self, transform, size: int = 20, base: int = 0) -> None:
        self.X = torch.rand(size, 3) + base
        self.transform = transform

    def __len__(self):
        return len(self.X)

    def __getitem__(self, index):
        X = self.X[index]
        return X if self.transform is None else self.transform(X), index % 2


class AugmentedParts(Augmented):
    """The same with partitions, and with a transform that is named for those that are not trained on."""

    partitions = ("train", "validation", "test")

    def __init__(self, partition, transform, test_transform=None) -> None:
        super().__init__(test_transform if partition == "test" else transform)


def make_squares(size: int) -> Dataset:
    """A function may stand in the place of a class."""
    return torch.utils.data.TensorDataset(torch.arange(float(size)), torch.arange(size) % 4)


class Hanging(Squares):
    """Its sixth sample comes once `go_on` is set."""

    go_on = threading.Event()

    def __getitem__(self, index):
        if index == 5:
            self.go_on.wait()
        return super().__getitem__(index)
