"""What the times of a run mean: whether it waited for data, why, and which setting would end it.

From figures to words and overrides; nothing is measured or changed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from feedrate.timing.epoch_times import EpochTimes
from feedrate.timing.pipeline import Costs, Plan, seconds_per_batch
from feedrate.timing.stages import STAGES

INPUT_BOUND_PCT = 10.0  # of the steady time waited: above it a run is input-bound
COMPUTE_BOUND_PCT = 2.0  # below it, and with a loader that could do more by MARGIN, compute-bound
MARGIN = 1.25
WORTH = 1.05  # a remedy must promise this much more
AS_GOOD = 1.02  # two rates that differ by less are the same
FEW_STEPS = 20  # with fewer steady steps nothing is advised
MOST_WORKERS = 32
PREFETCHES = (2, 4, 8, 16)
MODELLED = 2000  # batches at most that the model goes through
RECEIVE_S = 4e-4  # what it takes to take over a batch from a process, where it was not seen
COPY_BYTES_PER_S = 4e9  # at which a packed batch is gathered, where it was not measured
CROWDED_PCT = 5.0  # of a step's time in the queue for a core, above which somebody takes its cores
_FIGURES = {
    "samples_per_s": "loader/samples_per_s",
    "wait_pct": "loader/wait_pct",
    "loader_ceiling_samples_per_s": "loader/ceiling_samples_per_s",
    "compute_ceiling_samples_per_s": "compute/ceiling_samples_per_s",
    "efficiency_pct": "loader/efficiency_pct",
}
_WORDS = {"handover": "hand-over"}


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What was measured with, and what could be had instead.

    Attributes:
        engine: inline, thread, process, or torch.
        workers, prefetch, batch_size: as configured.
        cores: usable ones.
        worker_mb: memory that each worker has for itself, 0 where unknown.
        worker_delay_s, main_delay_s: seconds for which workers, all together, and the main thread stood in the queue
            for a core in the measured time.
        packable: the override that lets later epochs read shards, empty where there is none.
    """

    engine: str
    workers: int
    prefetch: int
    batch_size: int
    cores: int
    worker_mb: float = 0.0
    worker_delay_s: float = 0.0
    main_delay_s: float = 0.0
    packable: str = ""


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
    figures = times.metrics(max(1, setup.workers))
    elapsed_s = float(times.elapsed[steady].sum() / 1e9)
    wait_pct, achieved = figures["loader/wait_pct"], figures["loader/samples_per_s"]
    compute = figures["compute/ceiling_samples_per_s"]
    loader = figures.get("loader/ceiling_samples_per_s")
    if wait_pct > INPUT_BOUND_PCT:
        kind = "input-bound"
    elif wait_pct < COMPUTE_BOUND_PCT and (loader is None or loader > MARGIN * compute):
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
    crowd = _crowded(times, setup)
    if crowd:
        said.append(crowd)
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


def _crowded(times: EpochTimes, setup: Setup) -> str:
    own_s = float((times.elapsed - times.wait)[times.counted].sum() / 1e9)
    share = 100 * setup.main_delay_s / max(own_s, 1e-9)
    if share < CROWDED_PCT or not setup.workers:
        return ""
    return f"The step stood in the queue for a core for {_percent(share)} of its time: the loader takes its cores."


# ---------------------------------------------------------------------------------------------------------
# what would help
# ---------------------------------------------------------------------------------------------------------


def costs_of(times: EpochTimes, setup: Setup) -> Costs:
    """What the steady batches cost, with the time in the queue for a core taken out."""
    rows = np.flatnonzero(times.counted)[-MODELLED:]
    work = (times.elapsed - times.wait).astype(float) / 1e9
    load = times.load.astype(float) / 1e9
    all_work, all_load = work[times.counted].sum(), load[times.counted].sum()
    work *= 1 - min(0.9, setup.main_delay_s / max(all_work, 1e-9))
    load *= 1 - min(0.9, setup.worker_delay_s / max(all_load, 1e-9))
    load_cpu = float(times.load_cpu[rows].mean() / 1e9)
    cpu = float(times.cpu[rows].mean() / 1e9)
    if setup.engine in ("thread", "inline"):  # the loader's computing is counted in this process, too
        cpu = max(0.0, cpu - load_cpu)
    receive = times.receive_ns() / 1e9 if setup.engine == "process" else min(times.receive_ns() / 1e9, RECEIVE_S)
    return Costs(load=load[rows].tolist(), step=work[rows].tolist(), load_cpu=load_cpu, step_cpu=cpu, receive=receive)


def _remedies(times: EpochTimes, setup: Setup, kind: str) -> tuple[Remedy, ...]:
    costs = costs_of(times, setup)
    steady = times.counted
    measured = float(times.elapsed[steady].mean() / 1e9)
    threads = setup.engine == "thread"
    now = seconds_per_batch(costs, Plan(setup.workers, setup.prefetch, threads), setup.cores)

    def gain(seconds: float) -> float:
        """What a plan promises, by the model and by the measurement: the lower of the two."""
        return min(now, measured) / seconds

    plans = {k: seconds_per_batch(costs, Plan(k, setup.prefetch, threads), setup.cores) for k in _counts(costs, setup)}
    found: list[Remedy] = []
    if kind != "compute-bound":
        best = min(plans.values())
        fewest = min(k for k, seconds in plans.items() if seconds <= best * 1.03)
        if fewest != setup.workers and gain(plans[fewest]) >= WORTH:
            found.append(Remedy(f"loader.num_workers={fewest}", gain(plans[fewest])))
        if setup.workers:
            for prefetch in PREFETCHES:
                if prefetch <= setup.prefetch:
                    continue
                seconds = seconds_per_batch(costs, Plan(setup.workers, prefetch, threads), setup.cores)
                if gain(seconds) >= WORTH:
                    found.append(Remedy(f"loader.prefetch_factor={prefetch}", gain(seconds)))
                    break
        if setup.packable:
            seconds = seconds_per_batch(
                _packed(costs, times), Plan(setup.workers, setup.prefetch, threads), setup.cores
            )
            if gain(seconds) >= WORTH:
                found.append(Remedy(setup.packable, gain(seconds), condition=" from the second epoch on"))
        found.sort(key=lambda remedy: -remedy.gain)
        return tuple(found[:2])
    enough = [k for k, seconds in plans.items() if k < setup.workers and seconds <= now * AS_GOOD and _ample(costs, k)]
    if enough:
        saved = (setup.workers - min(enough)) * setup.worker_mb
        found.append(Remedy(f"loader.num_workers={min(enough)}", saved_mb=saved))
    return tuple(found)


def _ample(costs: Costs, workers: int) -> bool:
    """Whether so many workers make MARGIN more than the step takes; without any, whether loading hardly counts."""
    load, step = sum(costs.load), sum(costs.step)
    return load * MARGIN <= step * workers if workers else load <= step * (AS_GOOD - 1)


def _counts(costs: Costs, setup: Setup) -> list[int]:
    """Numbers of workers that come into question: up to the cores where loading is computing, more where it waits."""
    load = sum(costs.load) / len(costs.load)
    most = setup.cores if costs.load_cpu > 0.5 * load else MOST_WORKERS
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
