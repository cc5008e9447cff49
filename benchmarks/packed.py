"""Shards against memory: samples/s of dataset=packed beside TensorDataset and a memcpy of whole batches, and the cache.

Files and shards are in the page cache; the loaders run alone, without a training step.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from figures import markdown, spread

REPEATS, CACHE_REPEATS, BATCH, BATCHES = 7, 5, 64, 150
SIZES = {"12 KB (3x64x64 uint8)": ((3, 64, 64), 12_000), "150 KB (3x224x224 uint8)": ((3, 224, 224), 1_500)}
SETTINGS = {"batch_size": BATCH, "shuffle": True, "seed": 0}


def run() -> str:
    import torch

    torch.set_num_threads(1)
    rows: list[tuple[object, ...]] = []
    cached: list[tuple[object, ...]] = []
    for name, (shape, count) in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "data"
            _write(root, shape, count)
            _pack(root)
            rates = _measure(_ways(root))
            cached.extend(_cache(root, name))
        for way, found in rates.items():
            memory = [a / b for a, b in zip(found, rates["TensorDataset, 0 workers"], strict=True)]
            copy = [a / b for a, b in zip(found, rates["memcpy of whole batches"], strict=True)]
            ratio = f"{median(found) / median(rates['memcpy of whole batches']):.2f}"
            rows.append((f"{name}: {way}", spread(found, 0), spread(memory), ratio, spread(copy)))
    head = ["samples", "samples/s", "to TensorDataset, by repeat", "to memcpy, medians", "to memcpy, by repeat"]
    second = markdown(["samples", "samples/s", "to the same epoch of the files, by repeat"], cached)
    return f"{markdown(head, rows)}\n\nWhole epochs of files, and with `dataset.cache=shards`:\n\n{second}"


def _write(root: Path, shape: tuple[int, ...], count: int) -> None:
    import json

    import torch

    root.mkdir()
    generator = torch.Generator().manual_seed(0)
    IDs = [f"{number:06d}" for number in range(count)]
    for ID in IDs:
        torch.save(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator), root / f"{ID}.pt")
    (root / "partition.json").write_text(json.dumps({"train": IDs, "validation": IDs[:0] or ["v"]}))
    torch.save(torch.zeros(shape, dtype=torch.uint8), root / "v.pt")
    (root / "labels.json").write_text(json.dumps({ID: number % 10 for number, ID in enumerate([*IDs, "v"])}))


def _pack(root: Path) -> None:
    import contextlib
    import io

    from feedrate.config import PackConfig
    from feedrate.dataset.writing.pack import pack

    node = {"_target_": "feedrate.dataset.TensorFiles", "root": str(root)}
    with contextlib.redirect_stdout(io.StringIO()):
        pack(PackConfig(dataset=node))


def _ways(root: Path) -> dict[str, Callable[[], float]]:
    import numpy as np
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    from feedrate.dataset import Packed, build_data
    from feedrate.loader import Loader

    node = {"_target_": "feedrate.dataset.TensorFiles", "root": str(root)}
    files = build_data(node, 0).partition["train"]
    packed = Packed(f"{root}-packed")
    whole = torch.stack([packed[index][0] for index in range(len(packed))])
    labels = torch.arange(len(packed)) % 10
    buffer = torch.empty((BATCH, *whole.shape[1:]), dtype=whole.dtype)
    order = np.random.default_rng(0).permutation(len(packed))
    batches = [order[at : at + BATCH] for at in range(0, len(order) - BATCH + 1, BATCH)]

    def copies() -> Iterator[Any]:
        while True:
            for at in range(0, len(whole) - BATCH + 1, BATCH):
                yield buffer.copy_(whole[at : at + BATCH])

    def gathers() -> Iterator[Any]:
        while True:
            for batch in batches:
                yield packed.load_batch(batch, lambda shape, dtype: buffer)

    def over(loader: Any) -> Iterator[Any]:
        while True:
            yield from loader

    def loader(dataset: Any, workers: int) -> Iterator[Any]:
        return over(Loader(dataset, num_workers=workers, persistent_workers=workers > 0, **SETTINGS))

    found = {
        "memcpy of whole batches": copies(),
        "TensorDataset, 0 workers": over(DataLoader(TensorDataset(whole, labels), batch_size=BATCH, shuffle=True)),
        "packed, load_batch alone": gathers(),
        "packed, 0 workers": loader(packed, 0),
        "packed with pread, 0 workers": loader(Packed(f"{root}-packed", access="pread"), 0),
        "packed, 1 worker": loader(packed, 1),
        "packed, 2 workers": loader(packed, 2),
        "files, 0 workers": loader(files, 0),
    }
    return {name: _timed(iterator) for name, iterator in found.items()}


def _cache(root: Path, name: str) -> list[tuple[object, ...]]:
    """Whole epochs over the files, and with the cache: the first one fills it."""
    import shutil

    from feedrate.dataset import build_data
    from feedrate.loader import Loader

    rates: dict[tuple[str, str], list[float]] = {}
    for workers in (0, 2):
        for _ in range(CACHE_REPEATS):
            shutil.rmtree(root / ".feedrate", ignore_errors=True)
            for run, cache in (("files", "none"), ("cache", "shards"), ("cache, next run", "shards")):
                node = {"_target_": "feedrate.dataset.TensorFiles", "root": str(root), "cache": cache}
                data = build_data(node, 0).partition["train"]
                loader = Loader(data, num_workers=workers, persistent_workers=workers > 0, **SETTINGS)
                for epoch in ("first epoch", "second epoch"):  # the first one includes the start of the workers
                    rates.setdefault((run, f"{epoch}, {workers} workers"), []).append(_epoch(loader))
                loader.close()
                del data, loader
    return [
        (
            f"{name}: {run}, {epoch}",
            spread(found, 0),
            spread([a / b for a, b in zip(found, rates["files", epoch], strict=True)]),
        )
        for (run, epoch), found in rates.items()
    ]


def _epoch(loader: Any) -> float:
    count, begin = 0, time.perf_counter()
    for X, _ in loader:
        count += len(X)
    return count / (time.perf_counter() - begin)


def _timed(iterator: Iterator[Any]) -> Callable[[], float]:
    def rate() -> float:
        for _ in range(10):
            next(iterator)
        begin = time.perf_counter()
        for _ in range(BATCHES):
            next(iterator)
        return BATCH * BATCHES / (time.perf_counter() - begin)

    return rate


def _measure(ways: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, rate in ways.items():
            rates[name].append(rate())
    return rates


if __name__ == "__main__":
    import sys

    sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "src")]
    print(run())
