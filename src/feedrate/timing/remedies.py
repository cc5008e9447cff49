"""Which setting would end the waiting, and what it promises; or with how much less the same would be had.

Predicted by the model of pipeline.py from what the run measured; words are verdict.py's affair.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from feedrate.timing.ceilings import one_at_a_time
from feedrate.timing.epoch_times import RECEIVE_S, EpochTimes, Setup
from feedrate.timing.pipeline import Costs, Plan, seconds_per_batch
from feedrate.timing.stages import STAGES

WORTH = 1.05  # a remedy must promise this much more
NEARLY = 1.05  # so much slower than the best is good enough for fewer workers
AS_GOOD = 1.02  # two rates that differ by less are the same
MARGIN = 1.25  # how much more than the step takes a loader should make
MOST_WORKERS = 16  # advised; more want trying, as tune.py does
PREFETCHES = (2, 4, 8, 16)
MODELLED = 2000  # batches at most that the model goes through
TAKE_S = 5e-5  # what it takes to take over a batch from a thread, where it was not seen
THREADS_S = 1e-3  # of computing in a batch, up to which loader.engine=auto surely takes threads, if it may
SEND_S = 3e-4  # by how much longer the process takes to make it
SEND_CPU_S = 6e-4  # what the process computes for that, and for sending it while it makes the next one
COPY_BYTES_PER_S = 4e9  # at which a packed batch is gathered, where it was not measured


@dataclass(frozen=True)
class Remedy:
    """A change that is worth it.

    Attributes:
        override: as it is typed.
        gain: how many times the present rate it promises; 1 where it only saves, None where nothing can be promised.
        saved_mb: memory it saves.
        condition: what it needs, in words; empty for nothing.
    """

    override: str
    gain: float | None = 1.0
    saved_mb: float = 0.0
    condition: str = ""

    @property
    def faster(self) -> bool:
        """Whether it promises a higher rate that is worth it."""
        return self.gain is not None and self.gain >= WORTH

    def __str__(self) -> str:
        if self.gain is None:
            return f"{self.override}{self.condition}"
        promise = f"about {self.gain:.1f}x" if self.faster else "at the same rate"
        if self.saved_mb >= 10:
            promise += f", saves {in_bytes(self.saved_mb)}"
        return f"{self.override}{self.condition} ({promise})"


def remedies(times: EpochTimes, setup: Setup, kind: str) -> tuple[Remedy, ...]:
    """At most two, the best first; for a compute-bound run what would do with less.

    Where the free cores changed during the run, none that only saves, and the first of the others without its gain.
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
        alone = threads and workers and (locked or not setup.workers)  # where it was not seen, they count as locked
        return seconds_per_batch(costs, Plan(workers, prefetch, threads), 1.0 if alone else setup.cores)

    now = measured if locked else min(seconds(), measured)  # by model or measurement: what promises less
    with_workers, threads = costs, setup.threads
    if not setup.workers:
        threads = setup.threadable and costs.load_cpu <= THREADS_S
        with_workers = replace(costs, receive=TAKE_S) if threads else _in_processes(costs)
    plans = {k: seconds(with_workers if k else costs, workers=k, threads=threads) for k in _counts(costs, setup)}
    if kind == "compute-bound":
        enough = [k for k, s in plans.items() if k < setup.workers and s <= now * AS_GOOD and _ample(costs, k)]
        saved = (setup.workers - min(enough)) * setup.worker_mb if enough else 0
        return (Remedy(f"loader.num_workers={min(enough)}", saved_mb=saved),) if enough else ()
    if locked and setup.crowded:  # the lack of a core looks the same, and processes would lack it, too
        return ()
    if locked:  # neither more threads nor more batches ahead would change that
        others = {k: seconds(_in_processes(costs), workers=k, threads=False) for k in _counts(costs, setup) if k}
        fewest = min(k for k, s in others.items() if s <= min(others.values()) * NEARLY)
        number = f" loader.num_workers={fewest}" if fewest != setup.workers else ""
        gain = now / others[fewest]
        return (Remedy(f"loader.engine=process{number}", gain),) if gain >= WORTH else ()
    found: list[Remedy] = []
    best = min(plans.values())
    fewest = min(k for k, s in plans.items() if s <= best * NEARLY)
    if fewest != setup.workers:
        found.append(Remedy(f"loader.num_workers={fewest}", now / plans[fewest]))
    if setup.workers:
        ahead = [p for p in PREFETCHES if p > setup.prefetch]
        worth = next((p for p in ahead if now / seconds(prefetch=p) >= WORTH), None)
        if worth is not None:
            found.append(Remedy(f"loader.prefetch_factor={worth}", now / seconds(prefetch=worth)))
    if setup.packable:
        gain = now / seconds(_packed(costs, times))
        found.append(Remedy(setup.packable, gain, condition=" from the second epoch on"))
    return tuple(sorted((r for r in found if r.faster), key=lambda remedy: -(remedy.gain or 0.0))[:2])


def _ample(costs: Costs, workers: int) -> bool:
    """Whether so many workers make MARGIN more than the step takes; without any, whether loading hardly counts."""
    load, step = sum(costs.load), sum(costs.step)
    return load * MARGIN <= step * workers if workers else load <= step * (AS_GOOD - 1)


def _counts(costs: Costs, setup: Setup) -> list[int]:
    """Numbers of workers that come into question: up to the cores where loading is computing, more where it waits."""
    load = sum(costs.load) / len(costs.load)
    most = int(setup.cores + 0.5) if costs.load_cpu > 0.5 * load else MOST_WORKERS
    return list(range(max(most, setup.workers) + 1))


def _in_processes(costs: Costs) -> Costs:
    """The costs with batches that come from worker processes, where none have so far."""
    return Costs(
        load=[load + SEND_S for load in costs.load],
        step=costs.step,
        load_cpu=costs.load_cpu + SEND_CPU_S,
        step_cpu=costs.step_cpu + RECEIVE_S,
        receive=RECEIVE_S,
    )


def _packed(costs: Costs, times: EpochTimes) -> Costs:
    """The costs with samples that are copied from shards: what the dataset transforms stays, and collating goes."""
    rows = np.flatnonzero(times.counted)[-MODELLED:]
    stays = times.stages[rows][:, [STAGES.index("transform"), STAGES.index("handover")]].sum(axis=1) / 1e9
    load = stays + times.bytes[rows] / COPY_BYTES_PER_S
    share = float(load.sum() / max(1e-9, sum(costs.load)))
    return Costs(
        load=np.minimum(load, costs.load).tolist(),
        step=costs.step,
        load_cpu=min(costs.load_cpu, costs.load_cpu * share),
        step_cpu=costs.step_cpu,
        receive=costs.receive,
        way=costs.way,
    )


# ---------------------------------------------------------------------------------------------------------
# what was measured
# ---------------------------------------------------------------------------------------------------------


def costs_of(times: EpochTimes, setup: Setup) -> Costs:
    """What the steady batches cost, with the time in the queue for a core, or for the interpreter, taken out.

    What a process needs from one batch to the next counts as making it.
    """
    rows = np.flatnonzero(times.counted)[-MODELLED:]
    work = times.work.astype(float) / 1e9
    load = (times.load_alone if setup.threads else times.load).astype(float) / 1e9
    work *= min(1.0, times.work_alone_ns(setup.threads) / max(1e-9, 1e9 * float(work[times.counted].mean())))
    load_cpu = float(times.load_cpu[rows].mean() / 1e9)
    whole_s, computed_s = load[times.counted].sum(), times.load_cpu[times.counted].sum() / 1e9
    load *= min(1.0, max(whole_s - setup.worker_delay_s, computed_s, whole_s / 10) / max(whole_s, 1e-9))
    cpu = float(times.cpu[rows].mean() / 1e9)
    if setup.traits.shares_interpreter:  # the loader's computing is counted in this process, too
        cpu = max(0.0, cpu - load_cpu)
    if setup.traits.has_processes:
        load += times.pause_ns(setup.workers * setup.prefetch) / 1e9
    return Costs(
        load=load[rows].tolist(),
        step=work[rows].tolist(),
        load_cpu=load_cpu,
        step_cpu=cpu,
        receive=times.receive_ns() / 1e9 if setup.workers else RECEIVE_S,
        way=times.way_ns() / 1e9 if setup.workers else 0.0,
    )


def with_step(costs: Costs, seconds: float) -> Costs:
    """The same loading beside a step of that length, which does not compute."""
    return replace(costs, step=[seconds] * len(costs.load), step_cpu=0.0)


def in_bytes(mb: float) -> str:
    """`1.1 GB`, `35 MB`."""
    return f"{mb / 1000:.1f} GB" if mb >= 1000 else f"{mb:.0f} MB"
