"""Runs loaders as a training run does, and prints what was predicted and what they came to use; for test_preflight.py.

    python -m loader.use '[{"option": "feedrate", "num_workers": 2, "engine": "process"}, ...]'

A folder /dev/shm that nobody else uses is expected.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import torch
from omegaconf import OmegaConf

from feedrate.config import ROOT
from feedrate.dataset import Data
from feedrate.dataset.labels import Targets
from feedrate.loader import build_loaders, close_loaders, start_loaders
from feedrate.loader.build import _setup
from feedrate.loader.preflight import needs
from loader.datasets import Blocks

SAMPLES, NBYTES, BATCH = 160, 200_000, 8


def shared_bytes() -> int:
    found = os.statvfs("/dev/shm")
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def opened() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def own_bytes(processes: list[psutil.Process]) -> int:
    """Memory of processes without files and shared memory; pages that several hold count once."""
    lines = [line for p in processes for line in Path(f"/proc/{p.pid}/smaps_rollup").read_text().splitlines()]
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss_Anon:"))


def workers() -> list[psutil.Process]:
    """The loaders' own, without the helpers of Python's multiprocessing."""
    servers = ("import main; main(", "resource_tracker")
    found = psutil.Process().children(recursive=True)
    commands = [" ".join(p.cmdline()) for p in found]
    return [p for p, text in zip(found, commands, strict=True)
            if p.ppid() != os.getpid() or not any(server in text for server in servers)]  # fmt: skip


def use(option: str, **settings: Any) -> dict[str, Any]:
    """What loaders with these settings were predicted to need, and what they used at their peak."""
    partition = {"train": Blocks(SAMPLES, NBYTES), "validation": Blocks(SAMPLES // 2, NBYTES)}
    data = Data("blocks", partition, Targets("classification", (0,), 1), (NBYTES,), torch.uint8, None, None, "", "")
    node = OmegaConf.to_container(OmegaConf.load(ROOT / f"conf/loader/{option}.yaml"))
    assert isinstance(node, dict)
    files, shared, main = opened(), shared_bytes(), own_bytes([psutil.Process()])
    loaders = build_loaders({**node, "batch_size": BATCH, **settings}, data, 0, torch.device("cpu"))
    start_loaders(loaders, ("train", "validation"), data)
    predicted = needs(_setup([loaders["train"], loaders["validation"]], data))
    most = {"open_files": 0, "shared_memory": 0, "memory": 0}
    for _epoch in range(2):
        for name in ("train", "validation"):
            batches = 0
            for _X, _y in loaders[name]:  # enumerate would keep every second batch a while longer
                batches += 1  # noqa: SIM113
                time.sleep(0.01 if batches > 1 else 0.1)  # a step, in which the workers come to make all that they may
                now = {"open_files": opened() - files, "shared_memory": shared_bytes() - shared}
                if batches % 10 == 1:
                    now["memory"] = now["shared_memory"] + own_bytes([psutil.Process(), *workers()]) - main
                most = {key: max(value, now.get(key, 0)) for key, value in most.items()}
    close_loaders(loaders)
    del loaders
    gc.collect()
    return {"predicted": asdict(predicted), "used": most}


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING)
    use("feedrate", num_workers=1, prefetch_factor=1, engine="process", batch_size=4)  # opens and imports
    print(json.dumps([use(**settings) for settings in json.loads(sys.argv[1])]))
