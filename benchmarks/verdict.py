"""Is the verdict right? Workloads built from sleeps and computing, whose truth is measured apart.

For each cell the loader alone and the step alone give the true ceilings, the two together are judged, and the first
remedy, if it is a setting of the loader, is applied.
"""

from __future__ import annotations

import itertools
import logging
import time
from dataclasses import dataclass, replace
from statistics import median

import torch
from figures import markdown
from torch import Tensor
from torch.utils.data import Dataset

from feedrate.loader import Loader, ToDevice
from feedrate.timing import Clock
from feedrate.timing.remedies import MARGIN
from feedrate.timing.verdict import COMPUTE_BOUND_PCT, INPUT_BOUND_PCT, Verdict
from feedrate.trainer.account import Account

BATCH = 8
SAMPLE_MS = (0.25, 1.0, 4.0)
STEP_MS = (1.0, 6.0, 24.0)
ENGINES = (("inline", 0), ("process", 1), ("process", 2), ("thread", 1), ("thread", 2))
SECONDS = 1.2  # of each measurement
OFF = 0.10  # cells nearer to a boundary are not counted


@dataclass(frozen=True)
class Cell:
    """A workload and a loader."""

    kind: str
    sample_ms: float
    step_ms: float
    engine: str
    workers: int
    prefetch: int = 2


class Costly(Dataset[tuple[Tensor, int]]):
    """A sample takes `sample_ms`: asleep, or computing in pure Python."""

    thread_safe = True

    def __init__(self, kind: str, sample_ms: float) -> None:
        self.kind, self.seconds = kind, sample_ms / 1e3

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self.kind == "sleep":
            time.sleep(self.seconds)
        else:
            burn(self.seconds)
        return torch.zeros(16), 0


def burn(seconds: float) -> None:
    """Computing for so long by the thread's own clock: whoever must share a core takes longer."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(200))


def together(cell: Cell, step_ms: float) -> tuple[float, Verdict | None]:
    """Samples per second with a step that sleeps, and the verdict."""
    data = Costly(cell.kind, cell.sample_ms)
    engine = {"engine": cell.engine} if cell.workers else {}
    ahead = {"prefetch_factor": cell.prefetch, "persistent_workers": True} if cell.workers else {}
    loader = Loader(data, BATCH, seed=0, num_workers=cell.workers, **engine, **ahead)
    account, clock = Account(loader), Clock(torch.device("cpu"), warmup_steps=2 * cell.workers * cell.prefetch + 2)
    account.begin()
    clock.begin()
    begin = None
    for number, batch in enumerate(ToDevice(loader, torch.device("cpu"), clock)):
        time.sleep(step_ms / 1e3)
        clock.lap("compute")
        clock.step(len(batch.X), batch.nbytes, batch.receipt.load)
        if number == 2 * cell.workers * cell.prefetch + 2:
            begin = time.perf_counter()
        if begin is not None and time.perf_counter() - begin > SECONDS and number > 60:
            break
    account.trained()
    times = clock.epoch()
    account.end(times)
    loader.close(at_once=True)
    verdict = account.verdict()
    return times.metrics(account.setup(times))["loader/samples_per_s"], verdict


def truth(lost: float, ratio: float) -> tuple[str, bool]:
    """The right word, and whether it stays the same with the figures changed by OFF and by a point of noise.

    Args:
        lost: share of the step's own rate that training with this loader does not reach.
        ratio: of the loader's own rate to the step's.
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


def slept(step_ms: float) -> float:
    """Samples per second of the step alone."""
    took = []
    for _ in range(30):
        begin = time.perf_counter()
        time.sleep(step_ms / 1e3)
        took.append(time.perf_counter() - begin)
    return BATCH / median(took)


def applied_to(cell: Cell, override: str) -> Cell:
    """The cell with a loader's setting changed."""
    key, value = override.removeprefix("loader.").split("=")
    if key == "engine":
        return replace(cell, engine=value)
    other = replace(cell, **{{"num_workers": "workers", "prefetch_factor": "prefetch"}[key]: int(value)})
    if other.workers == 0:
        return replace(other, engine="inline")
    return replace(other, engine="process") if cell.engine == "inline" else other


def run() -> str:
    logging.getLogger("feedrate").setLevel(logging.ERROR)
    rows, wrong, counted, ceilings, promises = [], 0, 0, [], []
    for kind, sample_ms, (engine, workers), step_ms in itertools.product(
        ("sleep", "burn"), SAMPLE_MS, ENGINES, STEP_MS
    ):
        cell = Cell(kind, sample_ms, step_ms, engine, workers)
        alone, _ = together(cell, 0.0)
        step = slept(step_ms)
        rate, verdict = together(cell, step_ms)
        assert verdict is not None
        word, clear = truth(1 - rate / step, alone / step)
        right = verdict.kind == word
        counted += clear
        wrong += clear and not right
        seen_loader = verdict.figures["loader_ceiling_samples_per_s"] / alone
        seen_step = verdict.figures["compute_ceiling_samples_per_s"] / step
        ceilings.append((seen_loader, seen_step))
        applied = ""
        if verdict.remedies:
            remedy = verdict.remedies[0]
            gained = together(applied_to(cell, remedy.override), step_ms)[0] / rate
            if remedy.gain > 1:
                promises.append((gained - 1) / (remedy.gain - 1))
            applied = f"{remedy.override}: {remedy.gain:.2f}, {gained:.2f}"
        said = verdict.kind if right else f"{verdict.kind} (truth: {word}{'' if clear else ', near'})"
        name = f"{kind} {sample_ms:g} ms, {engine} {workers}, step {step_ms:g} ms"
        rates = [f"{alone:,.0f}", f"{step:,.0f}", f"{seen_loader:.2f}", f"{seen_step:.2f}", f"{rate:,.0f}"]
        rows.append([name, *rates, f"{verdict.figures['wait_pct']:.1f}", said, applied])
        print(*rows[-1], sep=" | ", flush=True)
    loaders, steps = zip(*ceilings, strict=True)
    within = [sum(0.9 <= v <= 1.1 for v in values) / len(values) for values in (loaders, steps)]
    kept = sum(share >= 0.8 for share in promises) / max(1, len(promises))
    summary = (
        f"{len(rows)} cells; right in {counted - wrong} of {counted} that lie more than {OFF:.0%} off a boundary. "
        f"Ceilings within 10 %: loader {within[0]:.0%}, compute {within[1]:.0%}. "
        f"Of {len(promises)} remedies that promised more, {kept:.0%} gained at least 80 % of it."
    )
    head = ["cell", "loader alone", "step alone", "loader ceiling / truth", "compute ceiling / truth", "together"]
    head += ["wait %", "verdict", "first remedy: promised, gained"]
    return f"{summary}\n\n{markdown(head, rows)}"
