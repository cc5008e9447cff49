"""The data sets that all contenders read: made on first use under data/peers, one `.pt` file per sample.

Contenders with another format write it into a folder beside it. Needs torch and NumPy only.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

CLASSES = 10
_POOL = np.random.default_rng(0).integers(0, 256, 1 << 22, dtype=np.uint8)


@dataclass(frozen=True)
class Set:
    """Samples that are a function of their index, so that every contender's batches can be checked.

    Attributes:
        shape: of a sample; a first dimension of None is a length of 50 to 500.
        size: number of samples.
        step_ms: of the simulated training step.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: torch.dtype
    size: int
    step_ms: float

    @property
    def ragged(self) -> bool:
        return self.shape[0] is None

    def length(self, index: int) -> int:
        """First dimension of a sample."""
        return 50 + index * 7919 % 451 if self.shape[0] is None else self.shape[0]

    def X(self, index: int) -> Tensor:
        """A sample: the index in its first eight bytes, then bytes that do not compress."""
        shape = (self.length(index), *self.shape[1:])
        nbytes = int(np.prod(shape)) * self.dtype.itemsize
        start = index * 64 % (len(_POOL) - nbytes)
        raw = _POOL[start : start + nbytes].copy()
        if self.dtype == torch.float32:
            raw = (raw.view(np.uint32) & 0x3FFFFFFF).view(np.uint8)  # no NaN
        raw[:8] = np.frombuffer(index.to_bytes(8, "little"), dtype=np.uint8)
        return torch.from_numpy(raw).view(self.dtype).view(shape)

    @staticmethod
    def y(index: int) -> int:
        return index % CLASSES

    @property
    def list_IDs(self) -> list[str]:
        return [f"sample-{index:06}" for index in range(self.size)]

    @property
    def labels(self) -> dict[str, int]:
        return {ID: self.y(index) for index, ID in enumerate(self.list_IDs)}

    def samples(self) -> Iterator[tuple[str, Tensor, int]]:
        """ID, X and y of each."""
        for index, ID in enumerate(self.list_IDs):
            yield ID, self.X(index), self.y(index)

    def check(self, X: Tensor, y: Tensor) -> list[int]:
        """Compares a batch with what was written, and returns the indices of its samples.

        Raises:
            ValueError: it differs.
        """
        X, found = torch.as_tensor(X), []
        for row, label in zip(X, y.tolist(), strict=True):
            index = int.from_bytes(row.contiguous().view(-1).view(torch.uint8)[:8].numpy().tobytes(), "little")
            expected = self.X(index)
            if not torch.equal(row[: len(expected)], expected) or row[len(expected) :].any() or label != self.y(index):
                raise ValueError(f"the batch's sample {index} is not what was written")
            found.append(index)
        return found


SETS = (
    Set("12 KB", (3, 64, 64), torch.uint8, 6000, 5.0),
    Set("150 KB", (3, 224, 224), torch.uint8, 3000, 10.0),
    Set("6 to 64 KB", (None, 32), torch.float32, 3000, 10.0),
)


def pad(samples: list[Any]) -> tuple[Tensor, Tensor]:
    """The collate function of sequences: (B, longest, ...), zeros after the end of each."""
    X = torch.nn.utils.rnn.pad_sequence([torch.as_tensor(sample[0]) for sample in samples], batch_first=True)
    return X, torch.tensor([int(sample[1]) for sample in samples])


@contextmanager
def _made(folder: Path) -> Iterator[Path]:
    """A folder to fill, renamed to its final name when it is complete."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    yield unfinished
    unfinished.rename(folder)


def make(folder: Path, write: Callable[[Path], None]) -> Path:
    """The folder, written by `write` if it does not exist."""
    if not folder.exists():
        with _made(folder) as unfinished:
            write(unfinished)
        os.sync()  # pages that are not on the disk yet cannot be dropped from the page cache
    return folder


def make_set(of: Set, root: Path) -> Path:
    """The folder of a set: `pt/ID.pt`, `pt/partition.json` and `pt/labels.json`; one more sample to validate with."""

    def write(folder: Path) -> None:
        for ID, X, _ in of.samples():
            torch.save(X, folder / f"{ID}.pt")
        torch.save(of.X(of.size), folder / "held-out.pt")
        (folder / "partition.json").write_text(json.dumps({"train": of.list_IDs, "validation": ["held-out"]}))
        (folder / "labels.json").write_text(json.dumps({**of.labels, "held-out": of.y(of.size)}))

    home = root / f"{of.name.replace(' ', '_')}-{of.size}"
    make(home / "pt", write)
    return home


def drop_from_page_cache(folder: Path) -> float:
    """Drops the files of a folder from the page cache; returns the share of sampled pages that are gone, 0 to 1.

    Needs no privilege. Pages that a process has mapped stay cached.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in files:
        file = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(file)
    sampled, gone = 0, 0
    for path in files[:: max(1, len(files) // 100)]:
        file = os.open(path, os.O_RDONLY)
        try:
            size = os.fstat(file).st_size
            for offset in range(0, size, max(4096, size // 10)):
                sampled += 1
                try:
                    os.preadv(file, [bytearray(1)], offset, os.RWF_NOWAIT)
                except BlockingIOError:
                    gone += 1
                except OSError:  # a file system without RWF_NOWAIT
                    return 0.0
        finally:
            os.close(file)
    return gone / max(1, sampled)
