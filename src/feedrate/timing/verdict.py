"""The verdict of a run: whether training waited for data, why, and which setting would help."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from feedrate.timing.ceilings import HELD_UP_PCT, all_cores_busy, held_pct, metrics, no_core_left
from feedrate.timing.epoch_times import MIN_STEPS, PARTS, EpochTimes, Setup
from feedrate.timing.remedies import MARGIN, Remedy, remedies
from feedrate.timing.stages import STAGES

INPUT_BOUND_PCT = 10.0  # of the steady time waited, above which a run is input-bound
COMPUTE_BOUND_PCT = 2.0  # below which it is compute-bound where the loader's ceiling is MARGIN times the step's
NO_STEP = 1e8  # samples/s: above it there was no training step
WIDTH = 100  # columns
FIGURES = {  # figure of a verdict -> the metric of an epoch with the same meaning
    "samples_per_s": "loader/samples_per_s",
    "wait_pct": "loader/wait_pct",
    "loader_ceiling_samples_per_s": "loader/ceiling_samples_per_s",
    "compute_ceiling_samples_per_s": "compute/ceiling_samples_per_s",
    "efficiency_pct": "loader/efficiency_pct",
}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether training waited, why, and what would help."""

    kind: str  # input-bound, compute-bound or balanced
    waited: str  # for how much of the time
    reason: str  # why, with figures
    figures: Mapping[str, float]  # those of FIGURES that are known
    remedies: Sequence[Remedy] = ()  # the best first; empty where none helps

    def __str__(self) -> str:
        """Three lines, as a rule: kind and waiting, why, what to try."""
        rows = [(self.kind, self.waited), ("why", self.reason)]
        if self.remedies:
            rows.append(("try", ", or ".join(map(str, self.remedies))))
        return "\n".join(
            textwrap.fill(f"{label:<13} {text}", WIDTH, subsequent_indent=14 * " ", break_on_hyphens=False)
            for label, text in rows
        )


def undecided(times: EpochTimes) -> str:
    """The text in place of a verdict where there are too few steps."""
    steady, steps, seconds = int(times.steady.sum()), len(times.wait), float(times.elapsed.sum() / 1e9)
    return (
        f"too few steps for a rate or a verdict: {steady} of {steps} count, {MIN_STEPS} are needed; "
        f"they took {_seconds(seconds)}"
    )


def judge(times: EpochTimes, setup: Setup) -> Verdict:
    """The verdict on the steady steps, of which there must be `enough`."""
    steady, found = times.counted, metrics(times, setup)
    figures = {name: found[metric] for name, metric in FIGURES.items() if metric in found}
    wait_pct, compute = figures["wait_pct"], figures["compute_ceiling_samples_per_s"]
    loader, held = figures.get("loader_ceiling_samples_per_s"), held_pct(times, setup)
    lost_pct = wait_pct + (held if held > HELD_UP_PCT else 0.0)
    if lost_pct > INPUT_BOUND_PCT:
        kind = "input-bound"
    elif lost_pct < COMPUTE_BOUND_PCT and (loader is None or loader > MARGIN * compute):
        kind = "compute-bound"
    else:
        kind = "balanced"
    waited = f"training waited {_percent(wait_pct)} of {_seconds(times.elapsed[steady].sum() / 1e9)}"
    if held > HELD_UP_PCT:
        waited += f" and was slowed down by {_percent(held)}"
    if not setup.workers:
        waited += ", without workers"
    step = f"the step can take {_rate(compute)}" if compute < NO_STEP else "there was no training step"
    if loader is None:  # how the loading went is not known
        reasons = [f"{_rate(figures['samples_per_s'])} samples/s were loaded, {step}"]
        advice: tuple[Remedy, ...] = ()
        if kind == "input-bound":
            reasons.append("loader=feedrate shows why")
    else:
        advice = remedies(times, setup, kind)
        name = "thread" if setup.threads else "worker"
        makes = f"{setup.workers} {name}{'s' * (setup.workers > 1)} can make" if setup.workers else "the loader makes"
        reasons = [f"{makes} {_rate(loader)} samples/s, {step}"]
        if wait_pct >= COMPUTE_BOUND_PCT:
            reasons.append(_waited_for(times))
        if held > HELD_UP_PCT:
            reasons.append(_slowed_down(times, setup))
        reasons.append(_longest_part(times) if kind == "compute-bound" else _cores(times, setup, advice))
        if kind == "input-bound" and not advice:
            reasons.append("no loader setting would change that here")
    return Verdict(kind=kind, waited=waited, reason="; ".join(filter(None, reasons)), figures=figures, remedies=advice)


def _waited_for(times: EpochTimes) -> str:
    """The largest stage of the load, or the hand-over to the main process."""
    steady = times.counted
    received, waited = (times.wait - times.starved)[steady].sum(), times.wait[steady].sum()
    if waited and received > 0.5 * waited:
        return f"{_percent(100 * received / waited)} of the waiting is hand-over of loaded batches"
    spent = times.stages[steady].sum(axis=0)
    stage, share = STAGES[int(spent.argmax())], 100 * spent.max() / max(1, spent.sum())
    return f"{_percent(share)} of the load is {'hand-over' if stage == 'handover' else stage}"


def _longest_part(times: EpochTimes) -> str:
    """The part of the step that takes longest, if its parts are known."""
    spent, step = times.parts[times.counted].mean(axis=0), times.compute[times.counted].mean()
    longest = f"{_percent(100 * spent.max() / max(1, step))} are {PARTS[int(spent.argmax())]}"
    return f"of {_ms(step / 1e6)} a step, {longest}" if spent.any() else ""


def _slowed_down(times: EpochTimes, setup: Setup) -> str:
    cores = not setup.threads or setup.crowded or no_core_left(times, setup)
    alone, now = times.work_alone_ns(setup.threads) / 1e6, times.work[times.counted].mean() / 1e6
    workers, effect = "threads" if setup.threads else "workers", "take its cores" if cores else "hold the GIL"
    return f"the loader's {workers} {effect}: a step takes {_ms(now)}, {_ms(alone)} alone"


def _cores(times: EpochTimes, setup: Setup, found: Sequence[Remedy]) -> str:
    """A limit of cores: all are busy, or other programs use some."""
    if setup.shifting and setup.free_range is not None:
        low, high = setup.free_range
        text = f"{low:.1f} to {high:.1f} of {setup.usable_cores} cores were free beside other programs"
        return f"{text}, so no gain is promised" if found else text
    if setup.cores < 0.75 * setup.usable_cores:
        free = setup.free_cores if setup.free_cores is not None else setup.cores
        text = f"only {free:.1f} of {setup.usable_cores} cores were free beside other programs"
        taken = any(remedy.gain is not None and all_cores_busy(times, setup, remedy.gain) for remedy in found)
        return f"{text}, which more workers would slow down" if taken else text
    if setup.workers and all_cores_busy(times, setup):
        return f"all {setup.cores:.1f} cores are busy, so more workers would not help"
    return ""


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _percent(value: float) -> str:
    return f"{value:.0f} %" if value >= 10 else f"{value:.1f} %"


def _ms(value: float) -> str:
    return f"{value:.3g} ms" if value < 999.5 else f"{value:,.0f} ms"


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value >= 10 else f"{value:.2g} s"
