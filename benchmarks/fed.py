"""Whether a step that the loader can feed 1.25 times over waits: simulated steps of several lengths."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from figures import markdown, spread

ROOT = Path(__file__).resolve().parents[1]
HEADROOMS = (1.25, 2.0, 4.0)
REPEATS, WARMUP, SECONDS, MOST_PCT = 5, 16, 0.7, 2.0
COMPUTED_NS = 500_000


def run() -> str:
    import torch

    from feedrate.loader import Loader

    torch.set_num_threads(1)
    rows = []
    for name, data, batch, engines in _sets():
        loaders = {
            f"{engine} {workers}": Loader(
                data,
                batch_size=batch,
                shuffle=True,
                num_workers=workers,
                persistent_workers=True,
                seed=0,
                engine=engine,
            )
            for engine in sorted(engines)  # processes first: they are forked
            for workers in (1, 2)
        }
        alone: dict[str, list[float]] = {way: [] for way in loaders}
        for _ in range(REPEATS):
            for way, loader in loaders.items():
                alone[way].append(_fed(loader, 0)[0])
        waits: dict[tuple[str, float], list[float]] = {}
        for _ in range(REPEATS):
            for way, loader in loaders.items():
                for headroom in HEADROOMS:
                    step_s = batch * headroom / median(alone[way])
                    waits.setdefault((way, headroom), []).append(_fed(loader, step_s)[1])
        for loader in loaders.values():
            loader.close()
        for (way, headroom), found in waits.items():
            step_ms = 1e3 * batch * headroom / median(alone[way])
            verdict = "pass" if median(found) <= MOST_PCT else "**falls short**"
            rows.append(
                (f"{name}, {way}", f"{median(alone[way]):,.0f}", f"{headroom:g}", f"{step_ms:.2f}",
                 spread(found), verdict)
            )  # fmt: skip
    head = ["samples, engine", "alone, samples/s", "headroom", "step, ms", "wait, %", "at most 2 %"]
    return markdown(head, rows)


class Computed:
    """Samples of 4 KB that are computed in pure Python."""

    def __len__(self) -> int:
        return 4096

    def __getitem__(self, index: int) -> Any:
        import torch

        until = time.thread_time_ns() + COMPUTED_NS
        while time.thread_time_ns() < until:
            pass
        return torch.full((1024,), index), index


def _sets() -> Iterator[tuple[str, Any, int, tuple[str, ...]]]:
    """Name, dataset, batch size and engines that it can be used with."""
    from peers.sets import SETS, make_set

    from feedrate.dataset import TensorFiles

    for of in SETS[:2]:
        folder = make_set(of, ROOT / "data/peers") / "pt"
        yield f"{of.name}", TensorFiles(of.list_IDs, of.labels, folder), 64, ("thread", "process")
    yield "0.5 ms of computing", Computed(), 32, ("process",)


def _fed(loader: Any, step_s: float) -> tuple[float, float]:
    """Samples/s, and the share of the time that was waited, over some seconds of a training that sleeps."""
    batches = _endless(loader)
    for _ in range(WARMUP):
        batch = next(batches)
        time.sleep(step_s)
    begin = now = time.perf_counter()
    waited = samples = 0.0
    while now - begin < SECONDS:
        asked = time.perf_counter()
        following = next(batches)
        waited += time.perf_counter() - asked
        batch = following  # from here on the time is that of its user, who lets go of the one before
        samples += len(batch[1])
        if step_s:
            time.sleep(step_s)
        now = time.perf_counter()
    return samples / (now - begin), 100 * waited / (now - begin)


def _endless(loader: Any) -> Any:
    while True:
        yield from loader
