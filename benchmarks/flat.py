"""Memory, file descriptors and shared memory over twenty epochs: none may grow, and none may be left at the end."""

from __future__ import annotations

import gc
import inspect
import os
from pathlib import Path
from typing import Any

from figures import markdown
from memory import tree, tree_mb

ROOT = Path(__file__).resolve().parents[1]
EPOCHS, SETTLED, MOST_PCT = 20, 2, 5.0


def run() -> str:
    import torch
    from peers.sets import SETS, make_set

    from feedrate.dataset import TensorFiles
    from feedrate.loader import Loader

    torch.set_num_threads(1)
    engines = "engine" in inspect.signature(Loader.__init__).parameters
    of = SETS[1]
    data = TensorFiles(of.list_IDs, of.labels, make_set(of, ROOT / "data/peers") / "pt")
    rows = []
    for engine, workers in (("inline", 0), ("thread", 2), ("process", 2)):
        if engine == "thread" and not engines:
            continue
        options: dict[str, Any] = {"engine": engine} if engines else {}
        for _batch in Loader(data, batch_size=64, seed=0):  # the dataset keeps an io_uring for this thread
            pass
        gc.collect()
        before = _descriptors(), _segments()
        loader = Loader(
            data, batch_size=64, shuffle=True, num_workers=workers, persistent_workers=workers > 0, seed=0, **options
        )
        memory, descriptors = [], []
        for _ in range(EPOCHS):
            for _batch in loader:
                pass
            del _batch
            memory.append(tree_mb(os.getpid()))
            descriptors.append(_descriptors())
        loader.close()
        del loader
        gc.collect()
        left = _descriptors() - before[0], len(_segments() - before[1]), len(list(tree(os.getpid()))) - 1
        growth = 100 * (max(memory[SETTLED:]) / memory[SETTLED - 1] - 1)
        good = growth <= MOST_PCT and not any(left) and descriptors[-1] <= descriptors[SETTLED - 1]
        rows.append(
            (f"{engine} {workers}", f"{memory[SETTLED - 1]:,.0f}", f"{max(memory[SETTLED:]):,.0f}", f"{growth:+.1f}",
             f"{descriptors[SETTLED - 1]} / {descriptors[-1]}", " / ".join(map(str, left)),
             "pass" if good else "**falls short**")
        )  # fmt: skip
    head = [
        "tensor files of 150 KB", f"MB after epoch {SETTLED}", f"highest up to epoch {EPOCHS}", "growth, %",
        "open files after them", "files / segments / processes left", "at most 5 %, nothing left",
    ]  # fmt: skip
    return markdown(head, rows)


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def _segments() -> set[str]:
    return set(os.listdir("/dev/shm"))  # noqa: PTH208
