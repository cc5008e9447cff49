"""What the times of a run mean: whether it waited for data, why, and which setting would end it.

From figures to words and overrides; nothing is measured or changed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from feedrate.timing.epoch_times import EpochTimes, Setup
from feedrate.timing.pipeline import Costs, Plan, seconds_per_batch
from feedrate.timing.stages import STAGES

INPUT_BOUND_PCT = 10.0  # of the steady time waited: above it a run is input-bound
COMPUTE_BOUND_PCT = 2.0  # below it, and with a loader that could do more by MARGIN, compute-bound
MARGIN = 1.25
WORTH = 1.05  # a remedy must promise this much more
NEARLY = 1.05  # so much slower than the best is good enough for fewer workers
AS_GOOD = 1.02  # two rates that differ by less are the same
FEW_STEPS = 20  # with fewer steady steps nothing is advised
MOST_WORKERS = 16
PREFETCHES = (2, 4, 8, 16)
MODELLED = 2000  # batches at most that the model goes through
RECEIVE_S = 6e-4  # what it takes to take over a batch from a process, where it was not seen
COPY_BYTES_PER_S = 4e9  # at which a packed batch is gathered, where it was not measured
HELD_UP_PCT = 3.0  # of the time by which the loader makes steps longer, above which it counts as waiting
_FIGURES = {
    "samples_per_s": "loader/samples_per_s",
    "wait_pct": "loader/wait_pct",
    "loader_ceiling_samples_per_s": "loader/ceiling_samples_per_s",
    "compute_ceiling_samples_per_s": "compute/ceiling_samples_per_s",
    "efficiency_pct": "loader/efficiency_pct",
}
_WORDS = {"handover": "hand-over"}


@dataclass(frozen=True)
class Remedy:
    """A change that is worth it.

    Attributes:
        override: as it is typed.
        gain: how many times the present rate it promises; 1 where it only saves.
        saved_mb: memory it saves.
        condition: what it needs, in words; empty for nothing.
    """

    override: str
    gain: float = 1.0
    saved_mb: float = 0.0
    condition: str = ""

    def __str__(self) -> str:
        promise = f"about {self.gain:.1f}x" if self.gain >= WORTH else "at the same rate"
        if self.saved_mb >= 10:
            promise += f", saves {_bytes(self.saved_mb)}"
        return f"{self.override}{self.condition} ({promise})"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The answer.

    Attributes:
        kind: input-bound, compute-bound or balanced.
        reason: why, with figures; sentences.
        figures: that it rests on: samples_per_s, wait_pct, loader_ceiling_samples_per_s, compute_ceiling_samples_per_s,
            efficiency_pct, as far as they are known.
        remedies: the best first; none where none helps.
    """

    kind: str
    reason: str
    figures: Mapping[str, float]
    remedies: Sequence[Remedy] = field(default_factory=tuple)

    def __str__(self) -> str:
        text = f"{self.kind}: {self.reason}"
        if self.remedies:
            text += f" Try {', or '.join(map(str, self.remedies))}."
        return text


def judge(times: EpochTimes, setup: Setup) -> Verdict:
    """The verdict on the steady steps of an account, which must have at least one step."""
    steady = times.counted
    figures = times.metrics(setup)
    elapsed_s = float(times.elapsed[steady].sum() / 1e9)
    wait_pct, achieved = figures["loader/wait_pct"], figures["loader/samples_per_s"]
    compute, loader = figures["compute/ceiling_samples_per_s"], figures.get("loader/ceiling_samples_per_s")
    held_pct = _held_pct(times, setup)
    lost_pct = wait_pct + (held_pct if held_pct > HELD_UP_PCT else 0.0)
    if lost_pct > INPUT_BOUND_PCT:
        kind = "input-bound"
    elif lost_pct < COMPUTE_BOUND_PCT and (loader is None or loader > MARGIN * compute):
        kind = "compute-bound"
    else:
        kind = "balanced"
    kept = {name: figures[metric] for name, metric in _FIGURES.items() if metric in figures}
    said = [f"training waited {_percent(wait_pct)} of {_seconds(elapsed_s)}."]
    if loader is None:
        said.append(f"It made {_rate(achieved)}, the step can take {_rate(compute)}.")
        if kind == "input-bound":
            said.append("loader=feedrate says why.")
        return Verdict(kind=kind, reason=" ".join(said), figures=kept)
    said.append(f"{_makers(setup)} {_rate(loader)}, the step can take {_rate(compute)}.")
    if steady.sum() < FEW_STEPS:
        said.append(f"{int(steady.sum())} steps are too few for advice.")
        return Verdict(kind=kind, reason=" ".join(said), figures=kept)
    if wait_pct >= COMPUTE_BOUND_PCT:
        said.append(_where(times))
    if held_pct > HELD_UP_PCT:
        said.append(_held_up(times, setup))
    if setup.workers and _busy_cores(times, setup) > 0.95 * setup.cores:
        said.append(f"All {setup.cores:.1f} cores that were free for this run are computing.")
    remedies = _remedies(times, setup, kind)
    if kind == "input-bound" and not remedies:
        said.append("No setting of the loader would change that here.")
    return Verdict(kind=kind, reason=" ".join(said), figures=kept, remedies=remedies)


# ---------------------------------------------------------------------------------------------------------
# why
# ---------------------------------------------------------------------------------------------------------


def _where(times: EpochTimes) -> str:
    """What the waiting was for: the largest part of the load, or the hand-over in the main process."""
    steady = times.counted
    handed, waited = (times.wait - times.starved)[steady].sum(), times.wait[steady].sum()
    if waited and handed > 0.5 * waited:
        return f"{_percent(100 * handed / waited)} of the waiting is for batches to be handed over, not to be made."
    spent = times.stages[steady].sum(axis=0)
    largest = int(spent.argmax())
    return f"{_percent(100 * spent[largest] / max(1, spent.sum()))} of the load is {_word(STAGES[largest])}."


def _held_pct(times: EpochTimes, setup: Setup) -> float:
    """Share of the steady time by which the loader, at work beside the steps, made them longer."""
    steady = times.counted
    extra = times.work[steady].sum() - times.work_alone_ns(setup.threads) * steady.sum()
    return float(100 * max(0.0, extra) / max(1, times.elapsed[steady].sum()))


def _held_up(times: EpochTimes, setup: Setup) -> str:
    taken = "hold the interpreter" if setup.threads else "take its cores"
    makers = "threads" if setup.threads else "workers"
    alone, now = times.work_alone_ns(setup.threads) / 1e6, times.work[times.counted].mean() / 1e6
    return f"The loader's {makers} {taken}: a step takes {now:.3g} ms where it takes {alone:.3g} ms alone."


def _busy_cores(times: EpochTimes, setup: Setup) -> float:
    """Cores on which the run computed, on average."""
    steady = times.counted
    return float(_computing_ns(times, setup) / max(1, times.elapsed[steady].sum()))


def _computing_ns(times: EpochTimes, setup: Setup) -> float:
    """What main process and workers computed in the steady time."""
    steady = times.counted
    apart = times.load_cpu[steady].sum() if setup.engine == "process" else 0
    return float(times.cpu[steady].sum() + apart)


# ---------------------------------------------------------------------------------------------------------
# what would help
# ---------------------------------------------------------------------------------------------------------


def costs_of(times: EpochTimes, setup: Setup) -> Costs:
    """What the steady batches cost, with the time in the queue for a core, or for the interpreter, taken out."""
    rows = np.flatnonzero(times.counted)[-MODELLED:]
    work = times.work.astype(float) / 1e9
    load = times.load.astype(float) / 1e9
    work *= min(1.0, times.work_alone_ns(setup.threads) / max(1e-9, 1e9 * float(work[times.counted].mean())))
    load *= 1 - min(0.9, setup.worker_delay_s / max(load[times.counted].sum(), 1e-9))
    load_cpu = float(times.load_cpu[rows].mean() / 1e9)
    cpu = float(times.cpu[rows].mean() / 1e9)
    if setup.engine in ("thread", "inline"):  # the loader's computing is counted in this process, too
        cpu = max(0.0, cpu - load_cpu)
    if setup.threads and _one_at_a_time(times, setup):
        load = np.minimum(load, times.load_cpu / 1e9)  # the rest was spent waiting for the interpreter
    receive = times.receive_ns() / 1e9 if setup.workers else RECEIVE_S
    return Costs(load=load[rows].tolist(), step=work[rows].tolist(), load_cpu=load_cpu, step_cpu=cpu, receive=receive)


def _one_at_a_time(times: EpochTimes, setup: Setup) -> bool:
    """Whether the loader's threads hold the interpreter while they load, so that two are no faster than one."""
    steady = times.counted
    computing = times.load_cpu[steady].sum() / max(1, times.load[steady].sum())
    return _held_pct(times, setup) > HELD_UP_PCT or (
        setup.workers > 1
        and 0.8 < _busy_cores(times, setup) < 1.15
        and computing < 0.75
        and times.load[steady].sum() > 0.8 * setup.workers * times.elapsed[steady].sum()
    )


def _remedies(times: EpochTimes, setup: Setup, kind: str) -> tuple[Remedy, ...]:
    costs = costs_of(times, setup)
    measured = float(times.elapsed[times.counted].mean() / 1e9)
    locked = setup.threads and _one_at_a_time(times, setup)

    def seconds(costs: Costs = costs, workers: int = setup.workers, prefetch: int = setup.prefetch,
                threads: bool = setup.threads) -> float:  # fmt: skip
        return seconds_per_batch(costs, Plan(workers, prefetch, threads), 1.0 if locked and threads else setup.cores)

    now = measured if locked else min(seconds(), measured)  # by model or measurement: what promises less
    plans = {k: seconds(workers=k) for k in _counts(costs, setup)}
    if kind == "compute-bound":
        enough = [k for k, s in plans.items() if k < setup.workers and s <= now * AS_GOOD and _ample(costs, k)]
        saved = (setup.workers - min(enough)) * setup.worker_mb if enough else 0
        return (Remedy(f"loader.num_workers={min(enough)}", saved_mb=saved),) if enough else ()
    found: list[Remedy] = []
    best = min(plans.values())
    fewest = min(k for k, s in plans.items() if s <= best * NEARLY)
    if fewest != setup.workers:
        found.append(Remedy(f"loader.num_workers={fewest}", now / plans[fewest]))
    if locked:
        found.append(Remedy("loader.engine=process", now / seconds(replace(costs, receive=RECEIVE_S), threads=False)))
    if setup.workers:
        ahead = [p for p in PREFETCHES if p > setup.prefetch]
        worth = next((p for p in ahead if now / seconds(prefetch=p) >= WORTH), None)
        if worth is not None:
            found.append(Remedy(f"loader.prefetch_factor={worth}", now / seconds(prefetch=worth)))
    if setup.packable:
        gain = now / seconds(_packed(costs, times))
        found.append(Remedy(setup.packable, gain, condition=" from the second epoch on"))
    return tuple(sorted((r for r in found if r.gain >= WORTH), key=lambda remedy: -remedy.gain)[:2])


def _ample(costs: Costs, workers: int) -> bool:
    """Whether so many workers make MARGIN more than the step takes; without any, whether loading hardly counts."""
    load, step = sum(costs.load), sum(costs.step)
    return load * MARGIN <= step * workers if workers else load <= step * (AS_GOOD - 1)


def _counts(costs: Costs, setup: Setup) -> list[int]:
    """Numbers of workers that come into question: up to the cores where loading is computing, more where it waits."""
    load = sum(costs.load) / len(costs.load)
    most = int(setup.cores + 0.5) if costs.load_cpu > 0.5 * load else MOST_WORKERS
    return list(range(max(most, setup.workers) + 1))


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
    )


# ---------------------------------------------------------------------------------------------------------
# words
# ---------------------------------------------------------------------------------------------------------


def _makers(setup: Setup) -> str:
    if not setup.workers:
        return "Without workers the loader makes"
    kind = "thread" if setup.engine == "thread" else "worker"
    return f"{setup.workers} {kind}{'s' * (setup.workers > 1)} can make"


def _word(stage: str) -> str:
    return _WORDS.get(stage, stage)


def _rate(value: float) -> str:
    return f"{value:,.0f} samples/s" if value >= 10 else f"{value:.2g} samples/s"


def _percent(value: float) -> str:
    return f"{value:.0f} %" if value >= 10 else f"{value:.1f} %"


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value >= 10 else f"{value:.2g} s"


def _bytes(mb: float) -> str:
    return f"{mb / 1000:.1f} GB" if mb >= 1000 else f"{mb:.0f} MB"
