"""What the times of a run mean: whether it waited for data, why, and which setting would end it.

From figures to words and overrides; nothing is measured or changed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from feedrate.timing.ceilings import HELD_UP_PCT, all_cores_busy, held_pct, metrics, no_core_left
from feedrate.timing.epoch_times import MIN_STEPS, EpochTimes, Setup
from feedrate.timing.remedies import MARGIN, Remedy, in_bytes, remedies
from feedrate.timing.stages import STAGES

INPUT_BOUND_PCT = 10.0  # of the steady time waited: above it a run is input-bound
COMPUTE_BOUND_PCT = 2.0  # below it, and with a loader that could make MARGIN times what the step takes, compute-bound
FEW_STEPS = 20  # with fewer steady steps there is a verdict, but no advice
APART_PCT = 10.0  # of the time: a first epoch whose waiting differs by more from that of later ones is told
NO_STEP = 1e8  # samples per second: there was no step
DISK_MB = 1.0  # that must have come from the disk for it to be named
FIGURES = {  # of a verdict -> the metric of an epoch that means the same
    "samples_per_s": "loader/samples_per_s",
    "wait_pct": "loader/wait_pct",
    "loader_ceiling_samples_per_s": "loader/ceiling_samples_per_s",
    "compute_ceiling_samples_per_s": "compute/ceiling_samples_per_s",
    "efficiency_pct": "loader/efficiency_pct",
}
_WORDS = {"handover": "hand-over"}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The answer.

    Attributes:
        kind: input-bound, compute-bound or balanced.
        reason: why, with figures; sentences.
        figures: that it rests on: samples_per_s, wait_pct, loader_ceiling_samples_per_s, compute_ceiling_samples_per_s,
            efficiency_pct, as far as they are known.
        remedies: the best first; none where none helps.
        first_epoch: samples_per_s, wait_pct and read_mb (from the disk) of the first epoch, where the verdict is on
            later ones.
    """

    kind: str
    reason: str
    figures: Mapping[str, float]
    remedies: Sequence[Remedy] = field(default_factory=tuple)
    first_epoch: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        text = f"{self.kind}: {self.reason}"
        if self.remedies:
            text += f" Try {', or '.join(map(str, self.remedies))}."
        return text


def undecided(times: EpochTimes) -> str:
    """What is said in place of a verdict where there are not enough steps."""
    steady, steps, seconds = int(times.steady.sum()), len(times.wait), float(times.elapsed.sum() / 1e9)
    return (
        f"too few steps for a rate or a verdict: {steady} of {steps} count, {MIN_STEPS} are needed; "
        f"they took {_seconds(seconds)}"
    )


def judge(times: EpochTimes, setup: Setup, first_epoch: Mapping[str, float] | None = None) -> Verdict:
    """The verdict on the steady steps of an account, of which there must be `enough`.

    Args:
        first_epoch: see Verdict; where `times` are those of later ones.
    """
    verdict = _judged(times, setup)
    if not first_epoch:
        return verdict
    told = _told_apart(first_epoch, verdict.figures["wait_pct"])
    return replace(verdict, reason=f"{verdict.reason} {told}".rstrip(), first_epoch=first_epoch)


def _judged(times: EpochTimes, setup: Setup) -> Verdict:
    steady = times.counted
    figures = metrics(times, setup)
    elapsed_s = float(times.elapsed[steady].sum() / 1e9)
    wait_pct, achieved = figures["loader/wait_pct"], figures["loader/samples_per_s"]
    compute, loader = figures["compute/ceiling_samples_per_s"], figures.get("loader/ceiling_samples_per_s")
    held = held_pct(times, setup)
    lost_pct = wait_pct + (held if held > HELD_UP_PCT else 0.0)
    if lost_pct > INPUT_BOUND_PCT:
        kind = "input-bound"
    elif lost_pct < COMPUTE_BOUND_PCT and (loader is None or loader > MARGIN * compute):
        kind = "compute-bound"
    else:
        kind = "balanced"
    kept = {name: figures[metric] for name, metric in FIGURES.items() if metric in figures}
    also = f" and was held up for {_percent(held)}" if held > HELD_UP_PCT else ""
    said = [f"training waited {_percent(wait_pct)} of {_seconds(elapsed_s)}{also}."]
    if loader is None:
        said.append(f"It made {_rate(achieved)}, {_takes(compute)}.")
        if kind == "input-bound":
            said.append("loader=feedrate says why.")
        return Verdict(kind=kind, reason=" ".join(said), figures=kept)
    said.append(f"{_makers(setup)} {_rate(loader)}, {_takes(compute)}.")
    if wait_pct >= COMPUTE_BOUND_PCT:
        said.append(_where(times))
    if held > HELD_UP_PCT:
        said.append(_held_up(times, setup))
    found = remedies(times, setup, kind) if steady.sum() >= FEW_STEPS else ()
    if kind != "compute-bound" and (text := _cores(times, setup, found)):
        said.append(text)
    if steady.sum() < FEW_STEPS:
        said.append(f"Too few steps for advice: {int(steady.sum())}.")
        return Verdict(kind=kind, reason=" ".join(said), figures=kept)
    if kind == "input-bound" and not found:
        said.append("No setting of the loader would change that here.")
    return Verdict(kind=kind, reason=" ".join(said), figures=kept, remedies=found)


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


def _told_apart(first_epoch: Mapping[str, float], wait_pct: float) -> str:
    """That the first epoch, in which files come from the disk, waited more than later ones, or less."""
    first, read_mb = first_epoch["wait_pct"], first_epoch["read_mb"]
    if abs(first - wait_pct) <= APART_PCT:
        return ""
    disk = f", for which {in_bytes(read_mb)} came from the disk," if read_mb >= DISK_MB else ""
    return f"The first epoch{disk} waited {_percent(first)}, later ones {_percent(wait_pct)}."


def _held_up(times: EpochTimes, setup: Setup) -> str:
    taken = (
        "take its cores" if not setup.threads or setup.crowded or no_core_left(times, setup) else "hold the interpreter"
    )
    makers = "threads" if setup.threads else "workers"
    alone, now = times.work_alone_ns(setup.threads) / 1e6, times.work[times.counted].mean() / 1e6
    return f"The loader's {makers} {taken}: a step takes {now:.3g} ms where it takes {alone:.3g} ms alone."


def _cores(times: EpochTimes, setup: Setup, found: Sequence[Remedy]) -> str:
    """Where computing is at its limit, or others compute beside the run."""
    if setup.shifting and setup.free_range is not None:
        low, high = setup.free_range
        text = f"Others computed now more, now less: {low:.1f} to {high:.1f} of {setup.usable_cores} cores were free"
        return f"{text}, so no gain is promised." if found else f"{text}."
    if setup.cores < 0.75 * setup.usable_cores:
        free = setup.free_cores if setup.free_cores is not None else setup.cores
        text = f"Of {setup.usable_cores} cores only {free:.1f} were free for this run, others compute as well"
        taken = any(remedy.gain is not None and all_cores_busy(times, setup, remedy.gain) for remedy in found)
        return f"{text}: what more workers gain, they take from those." if taken else f"{text}."
    if setup.workers and all_cores_busy(times, setup):
        return f"All {setup.cores:.1f} cores are computing: more workers would make nothing faster."
    return ""


# ---------------------------------------------------------------------------------------------------------
# words
# ---------------------------------------------------------------------------------------------------------


def _makers(setup: Setup) -> str:
    if not setup.workers:
        return "Without workers the loader makes"
    kind = "thread" if setup.threads else "worker"
    return f"{setup.workers} {kind}{'s' * (setup.workers > 1)} can make"


def _takes(rate: float) -> str:
    return f"the step can take {_rate(rate)}" if rate < NO_STEP else "nothing was done with them"


def _word(stage: str) -> str:
    return _WORDS.get(stage, stage)


def _rate(value: float) -> str:
    return f"{value:,.0f} samples/s" if value >= 10 else f"{value:.2g} samples/s"


def _percent(value: float) -> str:
    return f"{value:.0f} %" if value >= 10 else f"{value:.1f} %"


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value >= 10 else f"{value:.2g} s"
