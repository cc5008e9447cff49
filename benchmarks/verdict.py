"""Is the verdict right? Workloads that sleep or compute for a set time, so that the true answer can be measured.

For each cell the loader alone and the step alone are measured, which gives the true ceilings. Then both run together,
the verdict is compared with the true answer, and its first remedy is applied, if it is a setting of the loader. Healthy
controls follow: workloads that are fed with no more workers than needed, for which no remedy should be given.
"""

from __future__ import annotations

import itertools
import logging
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

import torch
from cells import BATCH, CELLS, CONTROLS, Cell, Costly
from figures import markdown

from feedrate.loader import Loader, ToDevice
from feedrate.timing import Clock, EpochTimes
from feedrate.timing.remedies import MARGIN, WORTH
from feedrate.timing.verdict import COMPUTE_BOUND_PCT, INPUT_BOUND_PCT, Verdict
from feedrate.trainer.throughput_history import ThroughputHistory

SECONDS = 1.5  # of each measurement
BESIDE_SECONDS = 4.0  # of each measurement beside other programs
TURN_SECONDS = 1.0  # after which programs that come and go start or stop
SETTLED = 40  # batches of each thread after which the loader rarely pauses its threads to time a step alone
OFF = 0.10  # relative distance to a boundary; cells that are nearer are not counted
REPEATS = 3  # of each control
NEIGHBOURS = ("none", "one", "four", "changing")
WARMUP = 10  # steps of the step alone
CPU = torch.device("cpu")


BESIDE = [
    Cell(kind, sample_ms, step_ms, engine, workers)
    for kind, sample_ms in (("sleep", 1.0), ("burn", 4.0))
    for engine, workers in (("inline", 0), ("process", 1), ("thread", 1))
    for step_ms in (6.0, 24.0)
]


@contextmanager
def neighbour(kind: str) -> Iterator[None]:
    """Runs other programs during the block: none; one or four that compute all the time; or two that compute for
    TURN_SECONDS and sleep as long, in turns.
    """
    turn = f"end = time.monotonic() + {TURN_SECONDS}\n while time.monotonic() < end: pass\n time.sleep({TURN_SECONDS})"
    steady, changing = "while True: pass", f"import time\nwhile True:\n {turn}"
    codes = {"none": [], "one": [steady], "four": 4 * [steady], "changing": 2 * [changing]}[kind]
    processes = [subprocess.Popen([sys.executable, "-c", code]) for code in codes]
    try:
        time.sleep(0.3)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def together(cell: Cell, step_ms: float, seconds: float = SECONDS) -> tuple[float, Verdict | None]:
    """Trains with a step that sleeps; samples/s of the settled steps, and the verdict on all steps but the warm-up."""
    data = Costly(cell.kind, cell.sample_ms)
    engine = {"engine": cell.engine} if cell.workers else {}
    ahead = {"prefetch_factor": cell.prefetch, "persistent_workers": True} if cell.workers else {}
    loader = Loader(data, BATCH, seed=0, num_workers=cell.workers, **engine, **ahead)
    warmup = 2 * cell.workers * cell.prefetch + 2
    settled = max(warmup, SETTLED * cell.workers if cell.engine == "thread" else 0)
    history, clock = ThroughputHistory(loader), Clock(CPU, warmup)
    history.begin()
    train(loader, step_ms, clock, settled, seconds, history)
    history.trained()
    times = clock.epoch()
    history.end(times)
    loader.close(at_once=True)
    return rate_of(times, settled), history.verdict()


def rate_of(times: EpochTimes, settled: int) -> float:
    """Samples per second of the steps from number `settled` on."""
    return float(times.samples[settled:].sum() / times.elapsed[settled:].sum() * 1e9)


def train(
    batches: Iterable[Any],
    step_ms: float,
    clock: Clock,
    settled: int,
    seconds: float = SECONDS,
    history: ThroughputHistory | None = None,
) -> None:
    """Trains for `seconds` after the step number `settled`, with a step that sleeps, and for at least 60 steps."""
    begin, number = None, -1
    clock.begin()
    for batch in ToDevice(batches, CPU, clock):
        number += 1
        time.sleep(step_ms / 1e3)
        samples, info = len(batch.X), batch.info
        del batch  # as the trainer does; enumerate() would keep it, too
        if history is not None:
            history.step()
        clock.step(samples, info.nbytes, info.timing)
        if number == settled:
            begin = time.perf_counter()
        if begin is not None and time.perf_counter() - begin > seconds and number > 60:
            break


def truth(lost: float, ratio: float) -> tuple[str, bool]:
    """The true verdict, and whether it is clear: unchanged if the figures are off by OFF and a percentage point.

    Args:
        lost: share of the rate of the step alone that is lost by training with this loader, 0 to 1.
        ratio: rate of the loader alone to that of the step alone.
    """

    def word(lost: float, ratio: float) -> str:
        if lost > INPUT_BOUND_PCT / 100:
            return "input-bound"
        return "compute-bound" if lost < COMPUTE_BOUND_PCT / 100 and ratio > MARGIN else "balanced"

    nearby = {
        word(lost * (1 + lost_off) + point, ratio * (1 + ratio_off))
        for lost_off, point in ((-OFF, -0.01), (OFF, 0.01))
        for ratio_off in (-OFF, OFF)
    }
    return word(lost, ratio), len(nearby) == 1


def alone(step_ms: float) -> float:
    """Samples per second of the step alone: the same training on one batch that is used again and again."""
    clock = Clock(CPU, WARMUP)
    batch = torch.zeros(BATCH, 16), torch.zeros(BATCH)
    train(itertools.repeat(batch), step_ms, clock, WARMUP)
    return rate_of(clock.epoch(), WARMUP)


def applied_to(cell: Cell, override: str) -> Cell:
    """The cell with loader settings from an override, such as `loader.num_workers=2`."""
    names = {"engine": "engine", "num_workers": "workers", "prefetch_factor": "prefetch"}
    changed: dict[str, Any] = {}
    for one in override.split():
        key, value = one.removeprefix("loader.").split("=")
        changed[names[key]] = value if key == "engine" else int(value)
    other = replace(cell, **changed)
    if other.workers == 0:
        return replace(other, engine="inline")
    return replace(other, engine="process") if other.engine == "inline" else other


@dataclass(frozen=True)
class Judged:
    """A cell with its results.

    Attributes:
        alone, step, rate: samples/s of the loader alone, of the step alone, and of both together.
        changed: percent by which `alone` and `step` differed before and after the run that is judged.
    """

    cell: Cell
    alone: float
    step: float
    rate: float
    verdict: Verdict
    changed: tuple[float, float]

    @property
    def lost(self) -> float:
        return 1 - self.rate / self.step

    @property
    def truth(self) -> tuple[str, bool]:
        return truth(self.lost, self.alone / self.step)

    @property
    def ceilings(self) -> tuple[float, float]:
        """Ceilings of loader and step as reported, over those that were measured."""
        figures = self.verdict.figures
        return (
            figures["loader_ceiling_samples_per_s"] / self.alone,
            figures["compute_ceiling_samples_per_s"] / self.step,
        )

    @property
    def promised(self) -> float:
        """Gain promised by the first remedy; 1 where none is."""
        return (self.verdict.remedies[0].gain or 1.0) if self.verdict.remedies else 1.0

    def gained(self) -> float:
        """Gain measured with the first remedy."""
        other = applied_to(self.cell, self.verdict.remedies[0].override)
        return together(other, self.cell.step_ms)[0] / self.rate


def judged(cell: Cell) -> Judged:
    """Measures a cell; loader and step alone before and after the run that is judged, as the machine's speed drifts."""
    before = together(cell, 0.0)[0], alone(cell.step_ms)
    rate, verdict = together(cell, cell.step_ms)
    after = together(cell, 0.0)[0], alone(cell.step_ms)
    assert verdict is not None
    loader, step = (float(mean(rates)) for rates in zip(before, after, strict=True))
    changed_loader, changed_step = (100 * (max(rates) / min(rates) - 1) for rates in zip(before, after, strict=True))
    return Judged(cell, loader, step, rate, verdict, (changed_loader, changed_step))


def run() -> str:
    logging.getLogger("feedrate").setLevel(logging.ERROR)
    return f"{grid(CELLS)}\n\n{healthy()}\n\n{beside(BESIDE)}"


def grid(cells: Sequence[Cell]) -> str:
    rows, all_judged, promises = [], [], []
    for cell in cells:
        found = judged(cell)
        all_judged.append(found)
        word, clear = found.truth
        shown, applied = found.verdict.kind, ""
        if shown != word:
            shown += f" (truth: {word}{'' if clear else ', near'})"
        if found.verdict.remedies:
            gained = found.gained()
            if found.promised > 1:
                promises.append((gained - 1) / (found.promised - 1))
            promised = f"{found.promised:.2f}" if found.verdict.remedies[0].gain is not None else "nothing"
            applied = f"{found.verdict.remedies[0].override}: {promised}, {gained:.2f}"
        loader, step = found.ceilings
        truths = [f"{found.alone:,.0f} ({found.changed[0]:.0f})", f"{found.step:,.0f} ({found.changed[1]:.0f})"]
        rates = [*truths, f"{loader:.2f}", f"{step:.2f}", f"{found.rate:,.0f}"]
        rows.append([str(cell), *rates, f"{found.verdict.figures['wait_pct']:.1f}", shown, applied])
        print(*rows[-1], sep=" | ", flush=True)
    counted = [found for found in all_judged if found.truth[1]]
    right = sum(found.verdict.kind == found.truth[0] for found in counted)
    within = [_within(all_judged, side) for side in (0, 1)]
    kept = sum(share >= 0.8 for share in promises) / max(1, len(promises))
    summary = (
        f"{len(rows)} cells; right in {right} of {len(counted)} that lie more than {OFF:.0%} off a boundary. "
        f"Ceilings within 10 %: loader {within[0]}; compute {within[1]}. "
        f"Of {len(promises)} remedies with a promised gain, {kept:.0%} gained at least 80 % of it."
    )
    head = ["cell", "loader alone (change, %)", "step alone (change, %)", "loader ceiling / truth"]
    head += ["compute ceiling / truth", "together", "wait %", "verdict", "first remedy: promised, gained"]
    return f"{summary}\n\n{markdown(head, rows)}"


def _within(found: Sequence[Judged], side: int) -> str:
    """Shares of the ceilings within OFF of the measured ones: of all cells, and of those that were steady meanwhile."""
    near = {one.cell: abs(one.ceilings[side] - 1) <= OFF for one in found}
    same = [near[one.cell] for one in found if one.changed[side] <= 100 * OFF]
    return (
        f"{sum(near.values()) / len(near):.0%}, and {sum(same) / max(1, len(same)):.0%} of the {len(same)} whose true "
        "ceiling did not change by more before and after"
    )


def beside(cells: Sequence[Cell]) -> str:
    """Promised against measured gains: on a quiet machine, beside steady programs, and beside ones that come and go."""
    rows, wrong, made = [], dict.fromkeys(NEIGHBOURS, 0), dict.fromkeys(NEIGHBOURS, 0)
    for cell, kind in itertools.product(cells, NEIGHBOURS):
        with neighbour(kind):
            rate, verdict = together(cell, cell.step_ms, BESIDE_SECONDS)
            assert verdict is not None
            remedy = verdict.remedies[0] if verdict.remedies else None
            gained = (
                together(applied_to(cell, remedy.override), cell.step_ms, BESIDE_SECONDS)[0] / rate if remedy else 1.0
            )
        promised = remedy.gain if remedy else None
        if promised is not None:
            made[kind] += 1
            wrong[kind] += not 0.75 <= gained / promised <= 1.25
        shown = "none" if promised is None else f"{promised:.2f}"
        rows.append([str(cell), kind, remedy.override if remedy else "", shown, f"{gained:.2f}" if remedy else ""])
        print(*rows[-1], sep=" | ", flush=True)
    counts = "; ".join(f"{kind}: {made[kind]}, of which {wrong[kind]} wrong" for kind in NEIGHBOURS)
    summary = f"Promised gains, and how many were wrong by more than a quarter, by what ran beside. {counts}."
    return f"{summary}\n\n{markdown(['cell', 'neighbour', 'first remedy', 'promised', 'gained'], rows)}"


def healthy() -> str:
    """Controls: where training reaches nearly the rate of the step alone, no remedy should be given."""
    rows, advised, counted = [], 0, 0
    for cell in CONTROLS:
        runs = [judged(cell) for _ in range(REPEATS)]
        fed = [found for found in runs if found.lost < 1 - 1 / WORTH]
        counted += len(fed)
        advised += sum(bool(found.verdict.remedies) for found in fed)
        lost = ", ".join(f"{100 * found.lost:.1f}" for found in runs)
        kinds = ", ".join(found.verdict.kind for found in runs)
        remedies = ", ".join(str(found.verdict.remedies[0]) if found.verdict.remedies else "none" for found in runs)
        rows.append([str(cell), lost, kinds, remedies])
        print(*rows[-1], sep=" | ", flush=True)
    summary = (
        f"{len(CONTROLS)} healthy controls, {REPEATS} times each: of {counted} that reached {1 / WORTH:.0%} of the "
        f"step's own rate, so that no remedy could help, {advised} were given one."
    )
    return f"{summary}\n\n{markdown(['control', 'lost %', 'verdict', 'remedy'], rows)}"
