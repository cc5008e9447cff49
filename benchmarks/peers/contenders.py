"""The contenders, one line for each. To add one, write a function that opens it, in the module of its environment.

Such a function takes `(home, of, batch_size, workers)` and the contender's own settings, writes the files that it needs
below `home` if they do not exist, and returns an iterable: each `iter()` is a shuffled epoch of batches (X, y).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

BATCH = 64


@dataclass(frozen=True)
class Contender:
    """A row of the tables.

    Attributes:
        name: of the row.
        kind: 'ours', 'torch', 'memory' (data sets that are in memory), 'limit' or 'peer'; peers have their own
            environment.
        opener: 'module.function'.
        folder: of its files, below the set's folder; None where samples are in memory.
        ragged: whether it supports samples of different lengths.
        settings: keyword arguments of the opener.
    """

    name: str
    kind: str
    opener: str
    folder: str | None
    workers: int = 0
    ragged: bool = True
    settings: dict[str, Any] = field(default_factory=dict)


ENGINES = (("inline", 0), ("thread", 1), ("thread", 2), ("process", 1), ("process", 2))
FORMATS = {"tensor_files": "pt", "array_files": "npy", "packed": "packed", "in_memory": None}


def _ours() -> list[Contender]:
    return [
        Contender(
            f"{form}, {engine}{f' {workers}' if workers else ''}", "ours", "ours.open_loader", folder, workers,
            form != "in_memory", {"form": form, "engine": engine},
        )
        for form, folder in FORMATS.items()
        for engine, workers in ENGINES
    ]  # fmt: skip


CONTENDERS = (
    *_ours(),
    *(
        Contender(
            f"torch DataLoader, {workers} worker{'s' if workers != 1 else ''}",
            "torch",
            "torchs.open_files",
            "pt",
            workers,
        )
        for workers in (0, 1, 2, 4)
    ),
    Contender("TensorDataset in memory", "memory", "torchs.open_in_memory", None),
    Contender("memcpy of whole batches", "limit", "torchs.open_memcpy", None),
    Contender("tensordict memmap", "peer", "others.open_tensordict", "memmap", ragged=False),
    Contender("litdata, 0 workers", "peer", "others.open_litdata", "litdata"),
    Contender("litdata, 2 workers", "peer", "others.open_litdata", "litdata", 2),
    Contender("WebDataset, 0 workers", "peer", "others.open_webdataset", "tar"),
    Contender("WebDataset, 2 workers", "peer", "others.open_webdataset", "tar", 2),
    Contender("Grain with ArrayRecord, 0 threads", "peer", "others.open_grain", "array_record"),
    Contender("Grain with ArrayRecord, 2 threads", "peer", "others.open_grain", "array_record", 2),
    Contender("SPDL, torch.load, 2 threads", "peer", "others.open_spdl", "pt", 2),
    Contender("SPDL, load_npy, 2 threads", "peer", "others.open_spdl", "npy", 2, settings={"npy": True}),
)
