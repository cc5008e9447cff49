"""What the tests of packing share: a dataset folder, and packing it in this process."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from feedrate.config import PackConfig, PackingConfig
from feedrate.dataset import build_data
from feedrate.dataset.writing.pack import pack


def picture(number: int) -> torch.Tensor:
    """(2, 3, 4) uint8, another one for each number."""
    return torch.randint(0, 256, (2, 3, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))


def write_folder(
    root: Path,
    labels: Sequence[Any] | Callable[[int], Any] = lambda number: number % 3,
    sample: Callable[[int], Any] = picture,
    count: int = 24,
) -> Path:
    """A dataset folder: train, validation and test, with IDs in subfolders."""
    IDs = [f"scan-{number % 2}/ü{number:02d}" for number in range(count)]
    for number, ID in enumerate(IDs):
        path = root / f"{ID}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(sample(number), path)
        age(path)
    of = {ID: labels(n) if callable(labels) else labels[n] for n, ID in enumerate(IDs)}
    first, second = 2 * count // 3, 5 * count // 6
    partition = {"train": IDs[:first], "validation": IDs[first:second], "test": IDs[second:]}
    (root / "partition.json").write_text(json.dumps(partition))
    (root / "labels.json").write_text(json.dumps(of))
    return root


def age(path: Path) -> None:
    """As if the file had been written a minute ago: one of this instant could still be written to unnoticed."""
    then = time.time_ns() - 60_000_000_000
    os.utime(path, ns=(then, then))


def pack_folder(root: Path, target: str = "feedrate.dataset.TensorFiles", shard_mb: int = 256, **keys: Any) -> Path:
    """Packs a folder beside itself; the dataset's further keys are given by name."""
    packed = root.with_name(f"{root.name}-packed")
    node: Mapping[str, Any] = {"_target_": target, "root": str(root), **keys}
    packing = PackingConfig(num_workers=0, shard_mb=shard_mb)
    pack(PackConfig(dataset=dict(node), root=str(packed), pack=packing))
    return packed


def data_of(root: Path, target: str, **keys: Any) -> Any:
    return build_data({"_target_": target, "root": str(root), **keys}, 0)


def shards_of(packed: Path) -> list[Path]:
    return sorted(packed.glob("*.safetensors"))
