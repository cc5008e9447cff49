"""Samples computed while training: what workers bring on this machine, alone and with a step that needs no CPU."""

from __future__ import annotations

import time
from statistics import median

from figures import markdown, spread

REPEATS, BATCHES, WARMUP, BATCH = 5, 12, 3, 64


def run() -> str:
    import torch

    from feedrate.dataset import Generated
    from feedrate.loader import Loader

    torch.set_num_threads(1)
    data = Generated("train", seed=0, size=BATCH * (BATCHES + WARMUP))
    rows = []
    for step_ms in (0, 25):
        rates: dict[int, list[float]] = {0: [], 1: [], 2: []}
        loaders = {
            workers: Loader(
                data, batch_size=BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0, seed=0
            )
            for workers in rates
        }
        for _ in range(REPEATS):
            for workers, loader in loaders.items():
                rates[workers].append(_rate(loader, step_ms / 1000))
        for loader in loaders.values():
            loader.close()
        for workers, found in rates.items():
            ratios = [a / b for a, b in zip(found, rates[0], strict=True)]
            rows.append(
                (f"{workers} workers, {step_ms} ms", spread(found, 0), f"{median(found) / median(rates[0]):.2f}",
                 spread(ratios))
            )  # fmt: skip
    return markdown(["workers, step", "samples/s", "to 0 workers, medians", "to 0 workers, by repeat"], rows)


def _rate(loader: object, step_s: float) -> float:
    begin = 0.0
    for number, _ in enumerate(loader):  # type: ignore[arg-type, var-annotated]
        if number == WARMUP:
            begin = time.perf_counter()
        if step_s:
            time.sleep(step_s)
    return BATCH * (BATCHES - 1) / (time.perf_counter() - begin)
