"""Compares loaders side by side: a table, the rows of bench.json, and a check against an earlier bench.json."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from feedrate.config import BenchingConfig, check_bench, timeout_of
from feedrate.dataset import build_data
from feedrate.errors import UserError
from feedrate.system.text import table as text_table
from feedrate.timing.noise import Measured, noise, same
from feedrate.tuning.bench_measure import LoaderFacts, Measurement, facts_of, measure

FED_PCT = 2.0  # a loader feeds a step that waits no more
EQUAL = "~"  # marks a ratio within the noise

Baseline = Mapping[tuple[str, str], tuple[float, float]]  # (name, dataset) -> samples/s, noise in percent


@dataclass
class Entry:
    """A loader under comparison.

    Attributes:
        name: the overrides that distinguish it.
        config: resolved.
        measurements: by length of the step in ms; 0 is the loader alone.
    """

    name: str
    config: Mapping[str, Any]
    facts: LoaderFacts | None = None
    measurements: dict[float, list[Measurement]] = field(default_factory=dict)

    def middle(self, figure: str, step_ms: float = 0.0) -> float:
        """Median over the repeats."""
        return float(median(getattr(one, figure) for one in self.measurements[step_ms]))

    @property
    def rates(self) -> list[float]:
        """Samples per second of the loader alone, by repeat."""
        return [one.samples_per_s for one in self.measurements[0.0]]

    @property
    def step_lengths(self) -> list[float]:
        return [step for step in self.measurements if step]

    def stages(self) -> dict[str, float]:
        """Shares of the load by stage, in percent; empty if unknown."""
        alone = self.measurements[0.0]
        return {stage: float(median(one.stages_pct[stage] for one in alone)) for stage in alone[0].stages_pct}

    def sufficient_step_ms(self) -> float:
        """The shortest of the steps that it feeds; 0 if none."""
        short = max((step for step in self.step_lengths if self.middle("wait_pct", step) > FED_PCT), default=0.0)
        return min((step for step in self.step_lengths if step > short), default=0.0)

    def row(self) -> dict[str, Any]:
        """For bench.json."""
        assert self.facts is not None
        rates, middle = self.rates, self.middle
        return {
            "name": self.name,
            "dataset": self.facts.dataset,
            "loader": dict(self.config["loader"]),
            "engine": self.facts.engine,
            **{figure: middle(figure) for figure in ("samples_per_s", "mb_per_s", "cpu_s_per_1000", "load_ms")},
            "peak_rss_mb": max(one.peak_rss_mb for found in self.measurements.values() for one in found),
            "order_digest": self.facts.order_digest,
            "repeats": len(rates),
            "spread": [min(rates), max(rates)],
            "noise_pct": 100 * noise(rates) / median(rates),
            "stages_pct": self.stages(),
            "sufficient_step_ms": self.sufficient_step_ms(),
            "copy_samples_per_s": self.facts.copy_samples_per_s,
            "read_samples_per_s": self.facts.read_samples_per_s,
            "steps": [
                {"step_ms": s, "samples_per_s": middle("samples_per_s", s), "wait_pct": middle("wait_pct", s)}
                for s in self.step_lengths
            ],
        }


def entries_of(config: Mapping[str, Any], typed: Sequence[str], compare: Sequence[str]) -> list[Entry]:
    """An entry for each text of overrides in `compare`; without any, one of the configuration itself.

    Args:
        config: resolved.
        typed: the command's own overrides.

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
        try:
            overrides = shlex.split(text)
        except ValueError as error:
            raise UserError(f"bench.compare: {text}: cannot be read ({error}); close or remove the quote") from error
        for override in overrides:
            if override.partition("=")[0].partition(".")[0] not in ("dataset", "loader", "seed"):
                raise UserError(f"bench.compare: {override}: only settings of dataset, loader and seed can be compared")
        composed = compose("bench", overrides=[*kept, *overrides], return_hydra_config=True)
        with open_dict(composed):
            job = composed.pop("hydra")
        resolved = plain(composed, job=job)
        check_bench(resolved)
        found.append(Entry(text.strip() or "as configured", resolved))
    if len({entry.name for entry in found}) < len(found):
        raise UserError("bench.compare: two of the loaders are the same; give each once")
    return found


def measure_all(entries: Sequence[Entry], settings: BenchingConfig, baseline: Baseline | None = None) -> None:
    """Measures the entries in turns, so that other programs affect all of them alike.

    Raises:
        UserError: a loader cannot be built, or fails; the baseline has none of them.
    """
    loaders = []
    for entry in entries:
        config = entry.config
        data = build_data(config["dataset"], config["seed"], timeout=timeout_of(config["loader"]))
        loaders.append((config["loader"], data, config["seed"]))
        entry.facts = facts_of(*loaders[-1])
    if baseline is not None and len(names := unknown(entries, baseline)) == len(entries):
        text = f"it has no row for {', '.join(map(repr, names))}"
        raise UserError(f"bench.baseline: {text}; write it with the same dataset and bench.compare")
    for _ in range(settings.repeats):
        for step_ms in (0.0, *settings.step_ms):
            for entry, loader in zip(entries, loaders, strict=True):
                entry.measurements.setdefault(step_ms, []).append(measure(*loader, step_ms, settings.seconds))


# ---------------------------------------------------------------------------------------------------------
# terminal
# ---------------------------------------------------------------------------------------------------------


def described(entry: Entry) -> str:
    """The figures of one loader."""
    facts, rates = entry.facts, entry.rates
    assert facts is not None
    size = f"{facts.sample_bytes / 1e3:.1f} KB" if facts.sample_bytes < 1e6 else f"{facts.sample_bytes / 1e6:.1f} MB"
    plural = "" if facts.workers == 1 else "s"
    how = f"{facts.workers} worker{plural}, {facts.engine}" if facts.workers else "no workers"
    lines = [
        f"{entry.name}",
        f"  {facts.dataset}: {facts.samples:,} samples of {size}, batches of {facts.batch_size}, {how}",
        f"  alone       {median(rates):,.0f} samples/s ({min(rates):,.0f} to {max(rates):,.0f})  "
        f"{entry.middle('mb_per_s'):,.1f} MB/s  {entry.middle('cpu_s_per_1000'):.3g} CPU s per 1,000  "
        f"{_peak_mb(entry)} MB",
    ]
    if stages := entry.stages():
        parts = ", ".join(f"{stage} {share:.0f} %" for stage, share in stages.items() if share >= 0.5)
        lines.append(f"  load        {entry.middle('load_ms'):.3g} ms a batch: {parts}")
    limits = [("copies", facts.copy_samples_per_s), ("reads such files at", facts.read_samples_per_s)]
    shares = [f"{what} {rate:,.0f} samples/s ({100 * median(rates) / rate:.0f} %)" for what, rate in limits if rate]
    lines.append(f"  one core    {', '.join(shares)}")
    for step in entry.step_lengths:
        lines.append(
            f"  step {step:>4g} ms {entry.middle('samples_per_s', step):,.0f} samples/s, "
            f"waited {entry.middle('wait_pct', step):.1f} %"
        )
    if least := entry.sufficient_step_ms():
        rate = 1e3 * facts.batch_size / least
        lines.append(f"  suffices    for steps of {least:g} ms and more ({rate:,.0f} samples/s)")
    return "\n".join(lines)


def table(entries: Sequence[Entry]) -> str:
    """Rates alone and with each step, and ratios to the first loader, repeat by repeat."""
    steps = entries[0].step_lengths
    head = ["", "samples/s", "lowest to highest", "times the first", "CPU s per 1,000", "MB"]
    head += [*(f"wait %, {step:g} ms" for step in steps), "order digest"]
    rows = []
    for entry in entries:
        assert entry.facts is not None
        rates = entry.rates
        ratios = [a / b for a, b in zip(rates, entries[0].rates, strict=True)]
        equal = entry is not entries[0] and same(Measured(median(ratios), noise(ratios)), Measured(1.0))
        rows.append(
            [entry.name, f"{median(rates):,.0f}", f"{min(rates):,.0f} to {max(rates):,.0f}",
             f"{median(ratios):.2f}{EQUAL * equal}", f"{entry.middle('cpu_s_per_1000'):.3g}", _peak_mb(entry),
             *(f"{entry.middle('wait_pct', step):.1f}" for step in steps), entry.facts.order_digest[:8] or "-"]
        )  # fmt: skip
    equal_line = f"\n{EQUAL} equal to the first, within the noise" if any(EQUAL in row[3] for row in rows) else ""
    return text_table(head, rows, left=1) + equal_line


def _peak_mb(entry: Entry) -> str:
    return f"{max(one.peak_rss_mb for one in entry.measurements[0.0]):,.0f}"


# ---------------------------------------------------------------------------------------------------------
# bench.json
# ---------------------------------------------------------------------------------------------------------


def write(entries: Sequence[Entry], path: Path) -> None:
    """Writes bench.json, a list of rows."""
    path.write_text(json.dumps([entry.row() for entry in entries], indent=2, default=str) + "\n", encoding="utf-8")


def read(path: Path) -> Baseline:
    """The rates of an earlier bench.json.

    Raises:
        UserError: it cannot be read, or is none.
    """
    remedy = "name one that python src/bench.py has written"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        found = {
            (row["name"], row["dataset"]): (float(row["samples_per_s"]), float(row.get("noise_pct", 0.0)))
            for row in rows
        }
        if not found or not all(0 < rate < float("inf") for rate, _ in found.values()):
            raise ValueError("no rates")
    except OSError as error:
        raise UserError(f"bench.baseline={path}: cannot be read ({error.strerror or error}); {remedy}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"bench.baseline={path}: is no bench.json; {remedy}") from error
    return found


def unknown(entries: Sequence[Entry], baseline: Baseline) -> list[str]:
    """Names of the loaders that the baseline does not have with the same dataset."""
    return [entry.name for entry in entries if entry.facts and (entry.name, entry.facts.dataset) not in baseline]


def slower(entries: Sequence[Entry], baseline: Baseline, noise_pct: float) -> list[str]:
    """A line for each loader that is slower than in the baseline by more than the noise."""
    lines = []
    for row in (entry.row() for entry in entries):
        if (earlier := baseline.get((row["name"], row["dataset"]))) is None:
            continue
        now, before = (
            Measured(rate, rate * pct / 100, noise_pct / 100)
            for rate, pct in ((row["samples_per_s"], row["noise_pct"]), earlier)
        )
        if now.value < before.value and not same(now, before):
            loss = 100 * (1 - now.value / before.value)
            lines.append(
                f"{row['name']}: {now.value:,.0f} samples/s are {loss:.0f} % less than the {before.value:,.0f} of the "
                f"baseline; bench.noise_pct={noise_pct:g} is the least that counts"
            )
    return lines
