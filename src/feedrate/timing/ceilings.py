"""Rates and ceilings of an epoch, and whether loader and step slow each other down."""

from __future__ import annotations

import numpy as np

from feedrate.timing.epoch_times import PARTS, EpochTimes, Setup
from feedrate.timing.noise import block_noise
from feedrate.timing.stages import STAGES

LOCKED = 0.6  # slowdown of threads by each other (see EpochTimes.in_the_way) above which they hold the GIL
BUSY = 0.9  # share of the free cores in use above which all count as busy
CORE_LEFT = 0.75  # least idle part of a core that counts as free for a worker
HELD_UP_PCT = 3.0  # share of the time by which the loader makes steps longer, above which it counts as waiting


def metrics(times: EpochTimes, setup: Setup) -> dict[str, float]:
    """Loader and compute metrics of the steady steps, by the names of docs/metrics.md."""
    steady = times.counted
    if not steady.size:
        return {}
    elapsed_s, samples = times.elapsed[steady].sum() / 1e9, times.samples[steady].sum()
    wait_ms = times.wait[steady] / 1e6
    p50, p95, p99 = np.percentile(wait_ms, [50, 95, 99])
    rate = samples / elapsed_s
    per_step = samples / steady.sum() * 1e9
    found = {
        "loader/samples_per_s": rate,
        "loader/mb_per_s": times.bytes[steady].sum() / 1e6 / elapsed_s,
        "loader/wait_pct": 100 * wait_ms.sum() / 1e3 / elapsed_s,
        "loader/wait_ms_p50": p50,
        "loader/wait_ms_p95": p95,
        "loader/wait_ms_p99": p99,
        "loader/transfer_ms_p50": np.median(times.transfer[steady]) / 1e6,
        "compute/step_ms_p50": np.median(times.compute[steady]) / 1e6,
        "compute/ceiling_samples_per_s": per_step / max(1.0, times.work_alone_ns(setup.threads)),
    }
    if times.parts.any():  # means, which add up
        parts_ms = times.parts[steady].mean(axis=0) / 1e6
        found |= {f"compute/{name}_ms": ms for name, ms in zip(PARTS, parts_ms, strict=True)}
    if setup.free_cores is not None:
        found["compute/free_cores"] = setup.free_cores
    if (noise := block_noise(times.samples[steady], times.elapsed[steady])) is not None:
        found["loader/noise_pct"] = 100 * noise
    if times.known:
        load_ms, spent = times.load[steady] / 1e6, times.stages[steady].sum(axis=0)
        found["loader/load_ms_p50"], found["loader/load_ms_p95"] = np.percentile(load_ms, [50, 95])
        busy_pct = 100 * load_ms.sum() / 1e3 / elapsed_s / max(1, setup.workers)
        found["loader/worker_busy_pct"] = min(100.0, busy_pct)
        found["loader/ready_batches"] = times.ready[steady].mean()
        # batches loaded during an evaluation make the rate higher than the loader's own
        found["loader/ceiling_samples_per_s"] = max(rate, per_step / max(1.0, loader_ns(times, setup)))
        lower = min(found["loader/ceiling_samples_per_s"], found["compute/ceiling_samples_per_s"])
        found["loader/efficiency_pct"] = 100 * rate / lower
        for name, share in zip(STAGES, spent / max(1, spent.sum()), strict=True):
            found[f"loader/{name}_pct"] = 100 * share
    return {name: float(value) for name, value in found.items()}


def loader_ns(times: EpochTimes, setup: Setup) -> float:
    """Nanoseconds per batch of the loader alone: the longest of busy workers, hand-over and CPU time on free cores.

    Threads that hold the GIL have one core.
    """
    load, receive = times.load_together_ns(setup.threads, setup.workers), times.receive_ns()
    if not setup.workers:
        return load + receive
    cpu = float(times.load_cpu[times.counted].mean()) + receive
    cores = 1.0 if setup.threads and setup.workers > 1 and one_at_a_time(times, setup) else setup.cores
    pause = times.pause_ns(setup.workers * setup.prefetch) if setup.traits.has_processes else 0.0
    return max((load + pause) / setup.workers, receive, cpu / cores)


def held_pct(times: EpochTimes, setup: Setup) -> float:
    """Share of the steady time by which loading beside the steps made them longer."""
    steady = times.counted
    extra = times.work[steady].sum() - times.work_alone_ns(setup.threads) * steady.sum()
    return float(100 * max(0.0, extra) / max(1, times.elapsed[steady].sum()))


def all_cores_busy(times: EpochTimes, setup: Setup, faster: float = 1.0) -> bool:
    """Whether the run used all free cores, or would at `faster` times its rate."""
    return faster * sum(_cores_used(times, setup)) > BUSY * setup.cores


def no_core_left(times: EpochTimes, setup: Setup) -> bool:
    """Whether the steps leave no core to a loader, in any engine."""
    return _cores_used(times, setup)[0] > setup.cores - CORE_LEFT or all_cores_busy(times, setup)


def _cores_used(times: EpochTimes, setup: Setup) -> tuple[float, float]:
    """Mean number of cores that the steps used, and that the loader used."""
    steady = times.counted
    elapsed, main, loader = (part[steady].sum() for part in (times.elapsed, times.cpu, times.load_cpu))
    if setup.traits.shares_interpreter:  # `cpu` includes loading there
        main -= loader
    return float(main / max(1, elapsed)), float(loader / max(1, elapsed))


def one_at_a_time(times: EpochTimes, setup: Setup) -> bool:
    """Whether the loader's threads hold the GIL while they load, so that two are no faster than one."""
    if no_core_left(times, setup):
        return False
    return held_pct(times, setup) > HELD_UP_PCT or (setup.workers > 1 and times.in_the_way > LOCKED)
