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
    with torch.profiler.profile() as profile:
        yield
    profile.export_chrome_trace(str(folder / "profile.json"))
    log.info("%s", profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=10))
    log.info("profile     %s", folder / "profile.json")
