"""The engines on files of one tensor each: the loader alone, and with a training step at its side.

What a loader makes alone is worth nothing if it slows the step down, so the last columns decide what `auto` prefers.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

from figures import markdown, spread

REPEATS, BATCH = 5, 64
SIZES = {"12 KB": ((3, 64, 64), 4096, 200), "150 KB": ((3, 224, 224), 1024, 60)}  # shape, files, batches of a repeat
NONE = ("the same batch again", 0)  # what the step alone makes
WAYS = (("inline", 0), ("thread", 1), ("thread", 2), ("process", 1), ("process", 2))


def run() -> str:
    import torch

    from feedrate.dataset import TensorFiles
    from feedrate.loader import Loader

    rows = []
    for size, (shape, files, batches) in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            names = [f"{i:06d}" for i in range(files)]
            for name in names:
                torch.save(torch.randint(0, 256, shape, dtype=torch.uint8), Path(folder, f"{name}.pt"))
            data = TensorFiles(names, dict.fromkeys(names, 1), folder)
            common: dict[str, Any] = {"batch_size": BATCH, "shuffle": True, "drop_last": True, "seed": 0}
            loaders = {}
            for way in sorted(WAYS, key=lambda way: way[0]):  # processes before threads: they are forked
                settings = {"engine": way[0], "num_workers": way[1], "persistent_workers": way[1] > 0}
                loaders[way] = Loader(data, **common, **settings)
                loaders[way].start()
            sources: dict[Any, Iterator[Any]] = {way: _endless(loaders[way]) for way in WAYS}
            sources[NONE] = repeat(next(iter(Loader(data, **common))))
            steps = _steps(shape)
            rates: dict[Any, list[float]] = {(way, step): [] for way in (*WAYS, NONE) for step in steps}
            for number in range(REPEATS + 1):
                for step, compute in steps.items():
                    for way in (*WAYS, NONE):
                        rate = _rate(sources[way], compute, batches if step == "alone" else batches // 4)
                        if number:
                            rates[way, step].append(rate)
            for loader in loaders.values():
                loader.close()
            for way in (*WAYS, NONE):
                name = f"{size}, {way[0]}" + (f", {way[1]} workers" if way[1] else "")
                rows.append(
                    [name, *("-" if (way, step) == (NONE, "alone") else spread(rates[way, step], 0) for step in steps)]
                )
    head = ["batch 64", "alone, samples/s", "step that sleeps 5 ms", "step of Python and small kernels", "small CNN"]
    return markdown(head, rows)


def _steps(shape: tuple[int, ...]) -> dict[str, Callable[[Any], None]]:
    """What is done with a batch: nothing; waiting for a device; launching kernels from Python; computing here."""
    import torch
    from torch import nn

    small = torch.ones(8, 8)

    def launch(X: Any) -> None:
        for _ in range(1500):  # about 5 ms of the interpreter
            small.add_(1)

    net = nn.Sequential(
        nn.Conv2d(3, 8, 7, 4), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10)
    )
    net(torch.zeros(2, *shape))
    optimizer = torch.optim.SGD(net.parameters(), 1e-3)

    def train(X: Any) -> None:
        optimizer.zero_grad()
        net(X.float().div_(255)).square().mean().backward()
        optimizer.step()

    return {"alone": lambda X: None, "sleep": lambda X: time.sleep(0.005), "launch": launch, "cnn": train}


def _endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def _rate(batches: Iterator[Any], compute: Callable[[Any], None], count: int) -> float:
    """Samples/s over `count` batches after a few that are not counted."""
    for _ in range(6):
        compute(next(batches)[0])
    begin = time.perf_counter()
    for _ in range(count):
        X, _y = next(batches)
        compute(X)
    return count * BATCH / (time.perf_counter() - begin)
