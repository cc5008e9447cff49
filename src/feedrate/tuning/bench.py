"""Measures loaders side by side, alone (steps of 0 ms) and with steps that sleep; writes and compares bench.json."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch

from feedrate.config import BenchConfig, BenchingConfig, check_as, timeout_of
from feedrate.dataset import Data, build_data
from feedrate.errors import UserError
from feedrate.loader import setup_of
from feedrate.system.text import table as text_table
from feedrate.timing.ceilings import metrics
from feedrate.timing.noise import Measured, noise, same
from feedrate.timing.stages import STAGES
from feedrate.tuning.trial_runner import opened, timed_steps

EQUAL = "~"  # marks a ratio within the noise
CPU = torch.device("cpu")

Baseline = Mapping[tuple[str, str], tuple[float, float]]  # (name, dataset) -> samples/s, noise in percent


@dataclass
class Entry:
    """A loader under comparison."""

    name: str  # the overrides that distinguish it
    config: Mapping[str, Any]  # resolved
    measurements: dict[float, list[Mapping[str, Any]]] = field(default_factory=dict)  # by length of the step in ms

    def middle(self, figure: str, step_ms: float = 0.0) -> float:
        """Median over the repeats."""
        return float(median(one[figure] for one in self.measurements[step_ms]))

    @property
    def facts(self) -> Mapping[str, Any]:
        """The first measurement, for what all of them have in common."""
        return self.measurements[0.0][0]

    @property
    def rates(self) -> list[float]:
        """Samples per second of the loader alone, by repeat."""
        return [one["samples_per_s"] for one in self.measurements[0.0]]

    @property
    def step_lengths(self) -> list[float]:
        return [step for step in self.measurements if step]

    @property
    def stages(self) -> dict[str, float]:
        """Shares of the load by stage, in percent; empty if unknown."""
        return {stage: self.middle(stage) for stage in STAGES if stage in self.facts}

    def row(self) -> dict[str, Any]:
        """For bench.json."""
        return {
            "name": self.name,
            "loader": dict(self.config["loader"]),
            **{name: self.facts[name] for name in ("dataset", "engine")},
            **{name: self.middle(name) for name in ("samples_per_s", "mb_per_s", "cpu_s_per_1000", "load_ms")},
            "peak_rss_mb": max(one["peak_rss_mb"] for found in self.measurements.values() for one in found),
            "repeats": len(self.rates),
            "spread": [min(self.rates), max(self.rates)],
            "noise_pct": 100 * noise(self.rates) / median(self.rates),
            "stages_pct": self.stages,
            "steps": [
                {"step_ms": s, **{name: self.middle(name, s) for name in ("samples_per_s", "wait_pct")}}
                for s in self.step_lengths
            ],
        }


def entries_of(config: Mapping[str, Any], typed: Sequence[str], compare: Sequence[str]) -> list[Entry]:
    """An entry for each text of overrides in `compare`; without any, one of the resolved configuration itself.

    Raises:
        UserError: an override does not exist, or is of another group; two loaders are the same.
    """
    from hydra import compose
    from omegaconf import open_dict

    from feedrate.cli.launch import plain

    if not compare:
        return [Entry(" ".join(text for text in typed if text.startswith("loader")) or "the loader's defaults", config)]
    found = []
    kept = [text for text in typed if not text.startswith(("bench.", "hydra"))]
    for text in compare:
        overrides = text.split()
        for override in overrides:
            if override.partition("=")[0].partition(".")[0] not in ("dataset", "loader", "seed"):
                raise UserError(f"bench.compare: {override}: only settings of dataset, loader and seed can be compared")
        composed = compose("bench", overrides=[*kept, *overrides], return_hydra_config=True)
        with open_dict(composed):
            job = composed.pop("hydra")
        resolved = plain(composed, job=job)
        check_as(BenchConfig, resolved)
        found.append(Entry(text.strip() or "as configured", resolved))
    if len({entry.name for entry in found}) < len(found):
        raise UserError("bench.compare: two of the loaders are the same; give each once")
    return found


def measure_all(entries: Sequence[Entry], settings: BenchingConfig, baseline: Baseline | None = None) -> None:
    """Measures the entries in turns, so that other programs affect all of them alike.

    Raises:
        UserError: a loader cannot be built, or fails; the baseline lacks one.
    """
    loaders = []
    for entry in entries:
        config = entry.config
        data = build_data(config["dataset"], config["seed"], timeout=timeout_of(config["loader"]))
        loaders.append((config["loader"], data, config["seed"]))
        if baseline is not None and (entry.name, data.name) not in baseline:
            raise UserError(
                f"bench.baseline: it has no row for {entry.name!r}; write it with the same dataset and bench.compare"
            )
    for _ in range(settings.repeats):
        for step_ms in (0.0, *settings.step_ms):
            for entry, loader in zip(entries, loaders, strict=True):
                entry.measurements.setdefault(step_ms, []).append(measure(*loader, step_ms, settings.seconds))


def measure(node: Mapping[str, Any], data: Data, seed: int, step_ms: float, seconds: float) -> dict[str, Any]:
    """Measures the loader of a conf/loader node with steps of that length.

    Returns:
        dataset, samples (of the training partition), batch_size, workers, engine; samples_per_s, mb_per_s, wait_pct of
        the steady steps; load_ms (median time of a batch in its worker, 0 if unknown) and the shares of its stages in
        percent; cpu_s_per_1000: CPU seconds of the loader and the main process for 1,000 samples; peak_rss_mb: memory
        of the main process and own memory of its workers.

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
    return {
        "dataset": data.name,
        "samples": len(loader.dataset),
        "batch_size": loader.batch_size or 1,
        "workers": loader.num_workers,
        "engine": loader.engine,
        **{name: found[f"loader/{name}"] for name in ("samples_per_s", "mb_per_s", "wait_pct")},
        "load_ms": found.get("loader/load_ms_p50", 0.0),
        **{stage: found[f"loader/{stage}_pct"] for stage in STAGES if f"loader/{stage}_pct" in found},
        "cpu_s_per_1000": 1000 * spent_s / samples,
        "peak_rss_mb": memory_mb,
    }


def _family() -> Iterator[psutil.Process]:
    own = psutil.Process()
    yield from [own, *own.children(recursive=True)]


def _cpu_s() -> float:
    total = 0.0
    for process in _family():
        with contextlib.suppress(psutil.Error):
            total += sum(process.cpu_times()[:2])
    return total


def _memory_mb() -> float:
    own, *workers = _family()
    total = own.memory_info().rss
    for process in workers:
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().uss
    return float(total / 1e6)


def described(entry: Entry) -> str:
    """The figures of one loader."""
    facts, rates, workers = entry.facts, entry.rates, entry.facts["workers"]
    how = f"{workers} worker{'' if workers == 1 else 's'}, {facts['engine']}" if workers else "no workers"
    kilobytes = 1e3 * facts["mb_per_s"] / facts["samples_per_s"]
    lines = [
        f"{entry.name}",
        f"  {facts['dataset']}: {facts['samples']:,} samples of {kilobytes:,.1f} KB, "
        f"batches of {facts['batch_size']}, {how}",
        f"  alone       {median(rates):,.0f} samples/s ({min(rates):,.0f} to {max(rates):,.0f})  "
        f"{entry.middle('mb_per_s'):,.1f} MB/s  {entry.middle('cpu_s_per_1000'):.3g} CPU s per 1,000  "
        f"{entry.middle('peak_rss_mb'):,.0f} MB",
    ]
    if stages := entry.stages:
        parts = ", ".join(f"{stage} {share:.0f} %" for stage, share in stages.items() if share >= 0.5)
        lines.append(f"  load        {entry.middle('load_ms'):.3g} ms a batch: {parts}")
    for step in entry.step_lengths:
        rate, wait = entry.middle("samples_per_s", step), entry.middle("wait_pct", step)
        lines.append(f"  step {step:>4g} ms {rate:,.0f} samples/s, waited {wait:.1f} %")
    return "\n".join(lines)


def table(entries: Sequence[Entry]) -> str:
    """Rates alone and with each step, and ratios to the first loader, repeat by repeat."""
    steps = entries[0].step_lengths
    head = ["", "samples/s", "lowest to highest", "times the first", "CPU s per 1,000", "MB"]
    head += [f"wait %, {step:g} ms" for step in steps]
    rows = []
    for entry in entries:
        rates = entry.rates
        ratios = [a / b for a, b in zip(rates, entries[0].rates, strict=True)]
        equal = entry is not entries[0] and same(Measured(median(ratios), noise(ratios)), Measured(1.0))
        rows.append(
            [entry.name, f"{median(rates):,.0f}", f"{min(rates):,.0f} to {max(rates):,.0f}",
             f"{median(ratios):.2f}{EQUAL * equal}", f"{entry.middle('cpu_s_per_1000'):.3g}",
             f"{entry.middle('peak_rss_mb'):,.0f}", *(f"{entry.middle('wait_pct', step):.1f}" for step in steps)]
        )  # fmt: skip
    equal_line = f"\n{EQUAL} equal to the first, within the noise" if any(EQUAL in row[3] for row in rows) else ""
    return text_table(head, rows, left=1) + equal_line


def write(entries: Sequence[Entry], path: Path) -> None:
    """Writes bench.json, a list of rows."""
    path.write_text(json.dumps([entry.row() for entry in entries], indent=2, default=str) + "\n", encoding="utf-8")


def read(path: Path) -> Baseline:
    """The rates of an earlier bench.json.

    Raises:
        UserError: it cannot be read, or is none.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        found = {(row["name"], row["dataset"]): (float(row["samples_per_s"]), float(row["noise_pct"])) for row in rows}
        if not found or not all(0 < rate < float("inf") for rate, _ in found.values()):
            raise ValueError("no rates")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or "it is no bench.json"
        raise UserError(
            f"bench.baseline={path}: cannot be read ({reason}); name a file that python src/bench.py has written"
        ) from error
    return found


def slower(entries: Sequence[Entry], baseline: Baseline, noise_pct: float) -> list[str]:
    """A line for each loader that is slower than in the baseline by more than the noise."""
    lines = []
    for row in (entry.row() for entry in entries):
        now, before = (
            Measured(rate, rate * pct / 100, noise_pct / 100)
            for rate, pct in ((row["samples_per_s"], row["noise_pct"]), baseline[row["name"], row["dataset"]])
        )
        if now.value < before.value and not same(now, before):
            loss = 100 * (1 - now.value / before.value)
            lines.append(
                f"{row['name']}: {now.value:,.0f} samples/s are {loss:.0f} % less than the {before.value:,.0f} of the "
                f"baseline; bench.noise_pct={noise_pct:g} is the least that counts"
            )
    return lines
