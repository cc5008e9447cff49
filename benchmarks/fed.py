"""Whether a step that the loader can feed 1.25 times over waits: simulated steps of several lengths."""

from __future__ import annotations

import inspect
import time
from pathlib import Path
from statistics import median
from typing import Any

from figures import markdown, spread

ROOT = Path(__file__).resolve().parents[1]
HEADROOMS = (1.25, 2.0, 4.0)
REPEATS, WARMUP, SECONDS, MOST_PCT = 5, 16, 0.7, 2.0


def run() -> str:
    import torch
    from peers.sets import SETS, make_set

    from feedrate.dataset import TensorFiles
    from feedrate.loader import Loader

    torch.set_num_threads(1)
    engines = "engine" in inspect.signature(Loader.__init__).parameters
    rows = []
    for of in SETS[:2]:
        data = TensorFiles(of.list_IDs, of.labels, make_set(of, ROOT / "data/peers") / "pt")
        loaders = {
            f"{engine} {workers}": Loader(
                data, batch_size=64, shuffle=True, num_workers=workers, persistent_workers=True, seed=0,
                **({"engine": engine} if engines else {}),
            )
            for engine in (("thread", "process") if engines else ("process",))
            for workers in (1, 2)
        }  # fmt: skip
        alone: dict[str, list[float]] = {name: [] for name in loaders}
        for _ in range(REPEATS):
            for name, loader in loaders.items():
                alone[name].append(_fed(loader, 0)[0])
        waits: dict[tuple[str, float], list[float]] = {}
        for _ in range(REPEATS):
            for name, loader in loaders.items():
                for headroom in HEADROOMS:
                    step_s = 64 * headroom / median(alone[name])
                    waits.setdefault((name, headroom), []).append(_fed(loader, step_s)[1])
        for loader in loaders.values():
            loader.close()
        for (name, headroom), found in waits.items():
            step_ms = 64e3 * headroom / median(alone[name])
            verdict = "pass" if median(found) <= MOST_PCT else "**falls short**"
            rows.append(
                (f"{of.name}, {name}", f"{median(alone[name]):,.0f}", f"{headroom:g}", f"{step_ms:.2f}",
                 spread(found), verdict)
            )  # fmt: skip
    head = ["tensor files, engine", "alone, samples/s", "headroom", "step, ms", "wait, %", "at most 2 %"]
    return markdown(head, rows)


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
