"""Runs loaders as a training run does, and prints what was predicted and what they came to use; for test_preflight.py.

    python -m loader.use '[{"option": "feedrate", "num_workers": 2, "engine": "process"}, ...]'

A folder /dev/shm that nobody else uses is expected.
"""

from __future__ import annotations

import gc
import json
import logging
import multiprocessing
import os
import sys
import threading
import time
from contextlib import suppress
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
from loader.conftest import wait_until_loaders_are_gone
from loader.datasets import Blocks

SAMPLES, NBYTES, BATCH = 160, 200_000, 8


def shared_bytes() -> int:
    found = os.statvfs("/dev/shm")
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def opened() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def own_bytes(processes: list[psutil.Process], *kinds: str) -> int:
    """Memory of processes, of the kinds that Linux names Pss_...; pages that several hold count once."""
    found = 0
    for process in processes:
        with suppress(OSError):  # it has ended meanwhile
            for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
                kind, _, size = line.partition(":")
                found += int(size.split()[0]) * 1024 if kind in kinds else 0
    return found


def workers() -> list[psutil.Process]:
    """The loaders' own, without the helpers of Python's multiprocessing."""
    servers = ("import main; main(", "resource_tracker")
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            command = " ".join(process.cmdline())
            if process.ppid() != os.getpid() or not any(server in command for server in servers):
                found.append(process)
    return found


def busy(processes: list[psutil.Process]) -> bool:
    """Whether one of their threads, other than this one, computes or waits for a core."""
    for process in processes:
        try:
            tasks = list(Path(f"/proc/{process.pid}/task").glob("*/stat"))
        except OSError:  # it has ended
            continue
        for task in tasks:
            with suppress(OSError):
                state = task.read_text().rpartition(") ")[2][0]
                if state in "RD" and task.parent.name != str(threading.get_native_id()):
                    return True
    return False


def step(processes: list[psutil.Process]) -> None:
    """A step of 10 ms, and longer where those that load need that to make all that they may."""
    quiet, deadline = 0, time.monotonic() + 30
    while quiet < 5 and time.monotonic() < deadline:
        time.sleep(0.002)
        quiet = 0 if busy(processes) else quiet + 1


def use(option: str, **settings: Any) -> dict[str, Any]:
    """What loaders with these settings were predicted to need, and what they used at their peak."""
    partition = {"train": Blocks(SAMPLES, NBYTES), "validation": Blocks(SAMPLES // 2, NBYTES)}
    data = Data("blocks", partition, Targets("classification", (0,), 1), (NBYTES,), torch.uint8, None, None, "", "")
    node = OmegaConf.to_container(OmegaConf.load(ROOT / f"conf/loader/{option}.yaml"))
    assert isinstance(node, dict)
    files, shared, main = opened(), shared_bytes(), own_bytes([psutil.Process()], "Pss_Anon")
    loaders = build_loaders({**node, "batch_size": BATCH, **settings}, data, 0, torch.device("cpu"))
    start_loaders(loaders, ("train", "validation"), data)
    predicted = needs(_setup([loaders["train"], loaders["validation"]], data))
    most = {"open_files": 0, "shared_memory": 0, "memory": 0}
    for _epoch in range(2):
        for name in ("train", "validation"):
            batches, all_processes = 0, list[psutil.Process]()
            for _X, _y in loaders[name]:  # enumerate would keep every second batch a while longer
                batches += 1  # noqa: SIM113
                all_processes = all_processes or [psutil.Process(), *workers()]
                step(all_processes)
                now = {"open_files": opened() - files, "shared_memory": shared_bytes() - shared}
                if batches % 10 == 1:
                    now["memory"] = now["shared_memory"] + own_bytes(all_processes, "Pss_Anon") - main
                most = {key: max(value, now.get(key, 0)) for key, value in most.items()}
    del _X, _y
    close_loaders(loaders)
    del loaders
    gc.collect()
    wait_until_loaders_are_gone()
    while multiprocessing.active_children() or workers():
        time.sleep(0.01)
    return {"predicted": asdict(predicted), "used": most}


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING)
    use("feedrate", num_workers=1, prefetch_factor=1, engine="process", batch_size=4)  # opens and imports
    print(json.dumps([use(**settings) for settings in json.loads(sys.argv[1])]))
