"""Loaders side by side: measured in turns, told as a table and as rows of bench.json, held against earlier rows."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from feedrate.config import BenchingConfig
from feedrate.errors import UserError
from feedrate.timing.noise import Measured, noise, same
from feedrate.tuning.bench_measure import FED_PCT, About, Subject, Taken

EQUAL = "~"  # behind a ratio that noise may have made


@dataclass
class Entry:
    """A loader under comparison.

    Attributes:
        name: what tells it from the others, as it was typed.
        config: resolved.
        taken: measurements by length of the step in ms; 0 is the loader alone.
    """

    name: str
    config: Mapping[str, Any]
    about: About | None = None
    taken: dict[float, list[Taken]] = field(default_factory=dict)

    def middle(self, figure: str, step_ms: float = 0.0) -> float:
        """Median over the repeats."""
        return float(median(getattr(one, figure) for one in self.taken[step_ms]))

    def rates(self, step_ms: float = 0.0) -> list[float]:
        return [one.samples_per_s for one in self.taken[step_ms]]

    def stages(self) -> dict[str, float]:
        """Shares of the load by stage, in percent; empty for a loader that does not tell."""
        alone = self.taken[0.0]
        return {stage: float(median(one.stages_pct[stage] for one in alone)) for stage in alone[0].stages_pct}

    def sufficient_step_ms(self) -> float:
        """The shortest step that it feeds: as its costs alone tell, but none that was seen to wait longer; 0 where none
        is known.
        """
        told = self.middle("sufficient_step_ms")
        short = max((step for step in self.taken if step and self.middle("wait_pct", step) > FED_PCT), default=0.0)
        return told if told > short else min((step for step in self.taken if step > short), default=0.0)

    def row(self) -> dict[str, Any]:
        """For bench.json."""
        assert self.about is not None
        alone = self.rates()
        return {
            "name": self.name,
            "dataset": self.about.dataset,
            "loader": dict(self.config["loader"]),
            "engine": self.about.engine,
            "samples_per_s": self.middle("samples_per_s"),
            "mb_per_s": self.middle("mb_per_s"),
            "cpu_s_per_1000": self.middle("cpu_s_per_1000"),
            "peak_rss_mb": max(one.peak_rss_mb for found in self.taken.values() for one in found),
            "order_digest": self.about.order_digest,
            "repeats": len(alone),
            "spread": [min(alone), max(alone)],
            "noise_pct": 100 * noise(alone) / self.middle("samples_per_s"),
            "load_ms": self.middle("load_ms"),
            "stages_pct": self.stages(),
            "sufficient_step_ms": self.sufficient_step_ms(),
            "copy_samples_per_s": self.about.copy_samples_per_s,
            "read_samples_per_s": self.about.read_samples_per_s,
            "steps": [
                {"step_ms": step, "samples_per_s": self.middle("samples_per_s", step),
                 "wait_pct": self.middle("wait_pct", step)}
                for step in self.taken if step
            ],
        }  # fmt: skip


def measure(
    entries: Sequence[Entry], settings: BenchingConfig, baseline: Sequence[Mapping[str, Any]] | None = None
) -> None:
    """Fills the entries' measurements, taken in turns, so that what the machine does meanwhile meets all alike.

    Args:
        baseline: rows that they will be held against.

    Raises:
        UserError: one of the loaders cannot be built, or fails; the baseline knows none of them.
    """
    subjects: list[Subject] = []
    try:
        for entry in entries:
            subjects.append(Subject(entry.config))  # one by one, so that an interruption closes those that are there
        for entry, subject in zip(entries, subjects, strict=True):
            entry.about = subject.about()
        if baseline is not None and len(names := unknown(entries, baseline)) == len(entries):
            said = f"it has no row for {', '.join(map(repr, names))}"
            raise UserError(f"bench.baseline: {said}; write it with the same dataset and bench.compare")
        for _ in range(settings.repeats):
            for step_ms in (0.0, *settings.step_ms):
                for entry, subject in zip(entries, subjects, strict=True):
                    entry.taken.setdefault(step_ms, []).append(subject.measure(step_ms, settings.seconds))
    finally:
        for subject in subjects:
            subject.close()


def told(entry: Entry) -> str:
    """One loader in lines for the terminal."""
    about = entry.about
    assert about is not None
    size = f"{about.sample_bytes / 1e3:.1f} KB" if about.sample_bytes < 1e6 else f"{about.sample_bytes / 1e6:.1f} MB"
    plural = "" if about.workers == 1 else "s"
    how = f"{about.workers} worker{plural}, {about.engine}" if about.workers else "no workers"
    rates = entry.rates()
    lines = [
        f"{entry.name}",
        f"  {about.dataset}: {about.samples:,} samples of {size}, batches of {about.batch_size}, {how}",
        f"  alone       {median(rates):,.0f} samples/s ({min(rates):,.0f} to {max(rates):,.0f})  "
        f"{entry.middle('mb_per_s'):,.1f} MB/s  {entry.middle('cpu_s_per_1000'):.3g} CPU s per 1,000  "
        f"{max(one.peak_rss_mb for one in entry.taken[0.0]):,.0f} MB",
    ]
    if stages := entry.stages():
        parts = ", ".join(f"{stage} {share:.0f} %" for stage, share in stages.items() if share >= 0.5)
        lines.append(f"  load        {entry.middle('load_ms'):.3g} ms a batch: {parts}")
    limits = [("copies", about.copy_samples_per_s), ("reads such files at", about.read_samples_per_s)]
    shown = [
        f"{what} {rate:,.0f} samples/s ({100 * median(rates) / rate:.0f} % of it reached)"
        for what, rate in limits
        if rate
    ]
    lines.append(f"  the machine {', '.join(shown)}, one core")
    for step in (step for step in entry.taken if step):
        lines.append(
            f"  step {step:>4g} ms {entry.middle('samples_per_s', step):,.0f} samples/s, "
            f"waited {entry.middle('wait_pct', step):.1f} %"
        )
    if least := entry.sufficient_step_ms():
        rate = 1e3 * about.batch_size / least
        lines.append(f"  suffices    for steps of {least:.3g} ms and more ({rate:,.0f} samples/s)")
    return "\n".join(lines)


def side_by_side(entries: Sequence[Entry]) -> str:
    """The table of several: rates alone and with each step, against the first, repeat by repeat."""
    steps = [step for step in entries[0].taken if step]
    head = ["", "samples/s", "lowest to highest", "times the first", "CPU s per 1,000", "MB"]
    head += [f"wait %, {step:g} ms" for step in steps] + ["order digest"]
    rows = [head]
    for entry in entries:
        assert entry.about is not None
        rates = entry.rates()
        ratios = [a / b for a, b in zip(rates, entries[0].rates(), strict=True)]
        equal = entry is not entries[0] and same(Measured(median(ratios), noise(ratios)), Measured(1.0))
        rows.append(
            [entry.name, f"{median(rates):,.0f}", f"{min(rates):,.0f} to {max(rates):,.0f}",
             f"{median(ratios):.2f}{EQUAL * equal}",
             f"{entry.middle('cpu_s_per_1000'):.3g}", f"{max(one.peak_rss_mb for one in entry.taken[0.0]):,.0f}",
             *(f"{entry.middle('wait_pct', step):.1f}" for step in steps), entry.about.order_digest[:8] or "-"]
        )  # fmt: skip
    widths = [max(len(row[at]) for row in rows) for at in range(len(head))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    if any(row[3].endswith(EQUAL) for row in rows):
        lines.append(f"{EQUAL} equal to the first, within the noise")
    return "\n".join(lines)


def write(entries: Sequence[Entry], path: Path) -> None:
    """bench.json: a list of rows."""
    path.write_text(json.dumps([entry.row() for entry in entries], indent=2, default=str) + "\n", encoding="utf-8")


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of an earlier bench.json.

    Raises:
        UserError: there is none.
    """
    remedy = "name one that python src/bench.py has written"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"bench.baseline={path}: cannot be read ({error.strerror or error}); {remedy}") from error
    except ValueError:
        rows = None
    if not rows or not isinstance(rows, list) or not all(map(_is_row, rows)):
        raise UserError(f"bench.baseline={path}: is no bench.json; {remedy}")
    return rows


def _is_row(row: Any) -> bool:
    """Whether it can be compared with."""
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("name", "dataset")):
        return False
    rates = [row.get("samples_per_s"), *_spread(row)]
    return len(rates) == 3 and all(isinstance(r, (int, float)) and math.isfinite(r) for r in rates) and rates[0] > 0


def unknown(entries: Sequence[Entry], baseline: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the loaders of which the baseline has no row with the same data set."""
    known = {(row["name"], row["dataset"]) for row in baseline}
    return [entry.name for entry in entries if entry.about and (entry.name, entry.about.dataset) not in known]


def slower(entries: Sequence[Entry], baseline: Sequence[Mapping[str, Any]], noise_pct: float) -> list[str]:
    """A line for each loader that has become slower than noise explains; of the same name and data set."""
    known = {(row["name"], row["dataset"]): row for row in baseline}
    lines = []
    for row in (entry.row() for entry in entries):
        earlier = known.get((row["name"], row["dataset"]))
        if earlier is None:
            continue
        now, before = _measured(row, noise_pct), _measured(earlier, noise_pct)
        if now.value < before.value and not same(now, before):
            loss = 100 * (1 - now.value / before.value)
            lines.append(
                f"{row['name']}: {now.value:,.0f} samples/s are {loss:.0f} % less than the {before.value:,.0f} of the "
                f"baseline, more than noise explains (up to {noise_pct:g} % count as noise in any case)"
            )
    return lines


def _measured(row: Mapping[str, Any], noise_pct: float) -> Measured:
    """A row's rate; files of earlier versions have no noise, but the lowest and highest repeat."""
    rate, known = row["samples_per_s"], row.get("noise_pct")
    if isinstance(known, (int, float)) and math.isfinite(known):
        return Measured(rate, known * rate / 100, noise_pct / 100)
    low, high = _spread(row)
    return Measured(rate, noise([low, rate, high]) if high else 0.0, noise_pct / 100)


def _spread(row: Mapping[str, Any]) -> Sequence[Any]:
    """Lowest and highest repeat."""
    spread = row.get("spread") or (0.0, 0.0)
    return spread if isinstance(spread, Sequence) else ()
