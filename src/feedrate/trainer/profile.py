"""A torch profile of a run, for conf/debug/profile.yaml; keep such runs short, as every operation is recorded."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import torch

log = logging.getLogger("feedrate")


@contextlib.contextmanager
def profiled(enabled: bool, folder: Path) -> Iterator[None]:
    """Writes `folder`/profile.json (Chrome trace, opens in Perfetto) and prints the ten costliest operations."""
    if not enabled:
        yield
        return
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        yield
    profile.export_chrome_trace(str(folder / "profile.json"))
    key = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    log.info("%s", profile.key_averages().table(sort_by=key, row_limit=10))
    log.info("profile     %s", folder / "profile.json")
