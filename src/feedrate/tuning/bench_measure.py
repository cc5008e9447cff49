"""Measures a loader without a model: with steps of a given length, which sleep."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import psutil
import torch

from feedrate.dataset import Data
from feedrate.loader import ToDevice, setup_of
from feedrate.timing.ceilings import metrics
from feedrate.timing.stages import STAGES
from feedrate.tuning.timed_steps import opened, timed_steps

DIGEST_BATCHES = 16  # the order digest is of the first ones
COPY_S = 0.2  # of each measurement of the machine's limits
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Measurement:
    """One measurement of a loader.

    Attributes:
        samples_per_s, mb_per_s, wait_pct: of the steady steps.
        cpu_s_per_1000: CPU seconds of the loader and the main process for 1,000 samples.
        peak_rss_mb: memory of the main process and own memory of its workers.
        load_ms: median time of a batch in its worker, 0 if unknown.
        stages_pct: shares of the load by stage; empty if unknown.
    """

    samples_per_s: float
    mb_per_s: float
    wait_pct: float
    cpu_s_per_1000: float
    peak_rss_mb: float
    load_ms: float
    stages_pct: Mapping[str, float]


@dataclass(frozen=True)
class LoaderFacts:
    """What is measured.

    Attributes:
        dataset: its name. samples: of the training partition. sample_bytes: mean size of X and y.
        batch_size, workers, engine: of the loader.
        order_digest: of the first DIGEST_BATCHES batches; empty for a loader without a seed.
        copy_samples_per_s: rate at which one core copies batches in memory.
        read_samples_per_s: rate at which one thread reads the samples' files, 0 if they are no files.
    """

    dataset: str
    samples: int
    sample_bytes: float
    batch_size: int
    workers: int
    engine: str
    order_digest: str
    copy_samples_per_s: float
    read_samples_per_s: float


def facts_of(node: Mapping[str, Any], data: Data, seed: int) -> LoaderFacts:
    """Loads the first batches of a conf/loader node, and measures this machine's limits for such ones."""
    nbytes, samples, digest = 0, 0, ""
    with opened(node, data, seed, CPU) as loader:
        count = min(DIGEST_BATCHES, len(loader))
        for number, batch in enumerate(islice(ToDevice(loader, CPU), count), 1):
            X, nbytes, samples = batch.X, nbytes + batch.info.nbytes, samples + len(batch.X)
            if number == count:
                digest = loader.order_digest()
        return LoaderFacts(
            dataset=data.name,
            samples=len(loader.dataset),
            sample_bytes=nbytes / samples,
            batch_size=loader.batch_size or 1,
            workers=loader.num_workers,
            engine=loader.engine,
            order_digest=digest,
            copy_samples_per_s=_copy_rate(X),
            read_samples_per_s=_read_rate(loader.dataset),
        )


def measure(node: Mapping[str, Any], data: Data, seed: int, step_ms: float, seconds: float) -> Measurement:
    """Measures the loader of a conf/loader node with steps of that length; 0 for the loader alone.

    Raises:
        UserError: it cannot be built, or a sample fails.
    """
    samples, cpu_s = 0, 0.0

    def step(batch: Any) -> None:
        nonlocal samples
        samples += len(batch.X)
        if step_ms:
            time.sleep(step_ms / 1e3)

    def warmed_up() -> None:
        nonlocal samples, cpu_s
        samples, cpu_s = 0, _cpu_s()

    with opened(node, data, seed, CPU) as loader:
        times = timed_steps(loader, CPU, step, seconds, warmed_up=warmed_up)
        spent_s, memory_mb, found = _cpu_s() - cpu_s, _memory_mb(), metrics(times, setup_of(loader))
    return Measurement(
        samples_per_s=found["loader/samples_per_s"],
        mb_per_s=found["loader/mb_per_s"],
        wait_pct=found["loader/wait_pct"],
        cpu_s_per_1000=1000 * spent_s / samples,
        peak_rss_mb=memory_mb,
        load_ms=found.get("loader/load_ms_p50", 0.0),
        stages_pct={stage: found[f"loader/{stage}_pct"] for stage in STAGES if f"loader/{stage}_pct" in found},
    )


def _copy_rate(X: Any) -> float:
    target, count, begin = torch.empty_like(X), 0, time.perf_counter()
    while (spent := time.perf_counter() - begin) < COPY_S:
        target.copy_(X)
        count += len(X)
    return count / spent


def _read_rate(dataset: Any) -> float:
    """Samples per second of opening and reading the first 500 files again and again."""
    path, names = getattr(dataset, "path", None), getattr(dataset, "list_IDs", None)
    if not callable(path) or names is None:
        return 0.0
    paths = [str(path(names[index])) for index in range(min(500, len(names)))]
    memory, count, begin = bytearray(1 << 24), 0, time.perf_counter()
    try:
        while (spent := time.perf_counter() - begin) < COPY_S:
            with open(paths[count % len(paths)], "rb", buffering=0) as file:  # noqa: PTH123 - the fastest way
                file.readinto(memory)
            count += 1
    except OSError:  # samples are no files of their own
        return 0.0
    return count / spent


def _cpu_s() -> float:
    own, total = psutil.Process(), 0.0
    for process in [own, *own.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            total += sum(process.cpu_times()[:2])
    return total


def _memory_mb() -> float:
    own = psutil.Process()
    total = own.memory_info().rss
    for process in own.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().uss
    return float(total / 1e6)
