"""Finds loader settings that end the waiting, with their gain, or that reach the same rate with less.

Predicted by the model of pipeline.py from what the run measured.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from feedrate.timing.ceilings import one_at_a_time
from feedrate.timing.epoch_times import RECEIVE_S, EpochTimes, Setup
from feedrate.timing.pipeline import Costs, seconds_per_batch
from feedrate.timing.stages import STAGES

WORTH = 1.05  # least gain of a remedy, and of more workers than the fewest that nearly reach the best
AS_GOOD = 1.02  # rates within this factor count as equal
MARGIN = 1.25  # factor by which the loader's ceiling should exceed the step's
MOST_WORKERS = 16  # most workers advised
PREFETCHES = (2, 4, 8, 16)
MODELLED = 2000  # most batches that the model simulates
TAKE_S = 5e-5  # to receive a batch from a thread, where that was not measured
THREADS_S = 1e-3  # CPU time of a batch up to which loader.engine=auto chooses threads where the dataset allows them
SEND_S = 3e-4  # by how much longer a process takes for a batch, since it sends it
SEND_CPU_S = 6e-4  # CPU time of sending
COPY_BYTES_PER_S = 4e9  # rate at which packed batches are gathered, where that was not measured


@dataclass(frozen=True)
class Remedy:
    """A setting worth changing."""

    override: str  # as typed on the command line
    gain: float | None = 1.0  # factor on the rate; 1 where it only saves, None where no gain can be promised
    condition: str = ""  # when it applies; empty for always

    @property
    def faster(self) -> bool:
        """Whether a gain worth the change is promised."""
        return self.gain is not None and self.gain >= WORTH

    def __str__(self) -> str:
        if self.gain is None:
            return f"{self.override}{self.condition}"
        promise = f"about {self.gain:.1f}x" if self.faster else "at the same rate"
        return f"{self.override}{self.condition} ({promise})"


def remedies(times: EpochTimes, setup: Setup, kind: str) -> tuple[Remedy, ...]:
    """At most two remedies, the best first; for a compute-bound run, fewer workers that are enough.

    Where the free cores changed during the run, at most one remedy that makes it faster, without its gain.
    """
    found = _remedies(times, setup, kind)
    if not setup.shifting:
        return found
    return tuple(replace(remedy, gain=None) for remedy in found[:1] if remedy.faster)


def _remedies(times: EpochTimes, setup: Setup, kind: str) -> tuple[Remedy, ...]:
    costs = costs_of(times, setup)
    measured = float(times.elapsed[times.counted].mean() / 1e9)
    locked = setup.threads and one_at_a_time(times, setup)

    def seconds(costs: Costs = costs, workers: int = setup.workers, prefetch: int = setup.prefetch,
                threads: bool = setup.threads) -> float:  # fmt: skip
        one_core = threads and workers and (locked or not setup.workers)  # not yet measured: assume they hold the GIL
        return seconds_per_batch(costs, workers, 1.0 if one_core else setup.cores, prefetch, threads)

    now = measured if locked else min(seconds(), measured)  # the lower one promises less
    with_workers, threads = costs, setup.threads
    if not setup.workers:
        threads = setup.threadable and costs.load_cpu <= THREADS_S
        with_workers = replace(costs, receive=TAKE_S) if threads else _in_processes(costs)
    by_workers = {k: seconds(with_workers if k else costs, workers=k, threads=threads) for k in _counts(costs, setup)}
    if kind == "compute-bound":
        enough = [k for k, s in by_workers.items() if k < setup.workers and s <= now * AS_GOOD and _ample(costs, k)]
        return (Remedy(f"loader.num_workers={min(enough)}"),) if enough else ()
    if locked and setup.crowded:  # a lack of cores looks like the GIL, and would slow processes down too
        return ()
    if locked:  # neither more threads nor more prefetched batches would help
        others = {k: seconds(_in_processes(costs), workers=k, threads=False) for k in _counts(costs, setup) if k}
        fewest = min(k for k, s in others.items() if s <= min(others.values()) * WORTH)
        number = f" loader.num_workers={fewest}" if fewest != setup.workers else ""
        gain = now / others[fewest]
        return (Remedy(f"loader.engine=process{number}", gain),) if gain >= WORTH else ()
    found: list[Remedy] = []
    best = min(by_workers.values())
    fewest = min(k for k, s in by_workers.items() if s <= best * WORTH)
    if fewest != setup.workers:
        found.append(Remedy(f"loader.num_workers={fewest}", now / by_workers[fewest]))
    if setup.workers:
        gains = {p: now / seconds(prefetch=p) for p in PREFETCHES if p > setup.prefetch}
        found += [Remedy(f"loader.prefetch_factor={p}", gain) for p, gain in gains.items() if gain >= WORTH][:1]
    if setup.packable:
        gain = now / seconds(_packed(costs, times))
        found.append(Remedy(setup.packable, gain, condition=" from the second epoch on"))
    return tuple(sorted((r for r in found if r.faster), key=lambda remedy: -(remedy.gain or 0.0))[:2])


def _ample(costs: Costs, workers: int) -> bool:
    """Whether that many workers reach MARGIN; without workers, whether loading hardly counts."""
    load, step = sum(costs.load), sum(costs.step)
    return load * MARGIN <= step * workers if workers else load <= step * (AS_GOOD - 1)


def _counts(costs: Costs, setup: Setup) -> list[int]:
    """Numbers of workers to consider: up to the cores where loading mainly computes, more where it waits."""
    load = sum(costs.load) / len(costs.load)
    most = int(setup.cores + 0.5) if costs.load_cpu > 0.5 * load else MOST_WORKERS
    return list(range(max(most, setup.workers) + 1))


def _in_processes(costs: Costs) -> Costs:
    """The costs with worker processes, where there were none."""
    load, load_cpu = [load + SEND_S for load in costs.load], costs.load_cpu + SEND_CPU_S
    return replace(costs, load=load, load_cpu=load_cpu, step_cpu=costs.step_cpu + RECEIVE_S, receive=RECEIVE_S)


def _packed(costs: Costs, times: EpochTimes) -> Costs:
    """The costs with samples copied from shards: transforms stay, decoding and collating go."""
    rows = np.flatnonzero(times.counted)[-MODELLED:]
    stays = times.stages[rows][:, [STAGES.index("transform"), STAGES.index("handover")]].sum(axis=1) / 1e9
    load = stays + times.bytes[rows] / COPY_BYTES_PER_S
    load_cpu = costs.load_cpu * min(1.0, float(load.sum() / max(1e-9, sum(costs.load))))
    return replace(costs, load=np.minimum(load, costs.load).tolist(), load_cpu=load_cpu)


def costs_of(times: EpochTimes, setup: Setup) -> Costs:
    """Costs of the steady batches, without the time that threads queued for a core or for the GIL.

    The pause of a worker process between two batches counts as loading.
    """
    rows = np.flatnonzero(times.counted)[-MODELLED:]
    work = times.work.astype(float) / 1e9
    load = (times.load_alone if setup.threads else times.load).astype(float) / 1e9
    work *= min(1.0, times.work_alone_ns(setup.threads) / max(1e-9, 1e9 * float(work[times.counted].mean())))
    load_cpu = float(times.load_cpu[rows].mean() / 1e9)
    whole_s, computed_s = load[times.counted].sum(), times.load_cpu[times.counted].sum() / 1e9
    load *= min(1.0, max(whole_s - setup.worker_delay_s, computed_s, whole_s / 10) / max(whole_s, 1e-9))
    cpu = float(times.cpu[rows].mean() / 1e9)
    if setup.traits.shares_interpreter:  # `cpu` includes loading there
        cpu = max(0.0, cpu - load_cpu)
    if setup.traits.has_processes:
        load += times.pause_ns(setup.workers * setup.prefetch) / 1e9
    return Costs(
        load=load[rows].tolist(),
        step=work[rows].tolist(),
        load_cpu=load_cpu,
        step_cpu=cpu,
        receive=times.receive_ns() / 1e9 if setup.workers else RECEIVE_S,
    )
