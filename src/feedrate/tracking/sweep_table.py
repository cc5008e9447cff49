"""What came out of a sweep's jobs: one result for each job, the means over seeds, and the table in Markdown and CSV.

Nothing is started or recorded here; the figures come from the summary.json that each job leaves in its folder.
"""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feedrate.tracking.note import number

WORKERS, BATCH_SIZE, SEED = "loader.num_workers", "loader.batch_size", "seed"
_WORDS = {WORKERS: "workers", BATCH_SIZE: "batch size"}
_METRICS = (("validation/accuracy", True), ("validation/mae", False), ("validation/loss", False))
_SPENT = ("wait", "transfer", "compute")  # an epoch without evaluation and checkpoints
_ERROR_CHARACTERS = 200


@dataclass(frozen=True, kw_only=True)
class Result:
    """One job.

    Attributes:
        number: of the job, from 0.
        settings: key -> value as it was typed, of workers, batch size and all that is swept.
        command: makes this job alone again; without secrets.
        status: FINISHED, FAILED, KILLED, or NOT RUN.
        error: why it is not FINISHED.
        samples_per_s: median over the epochs; the first is left out where there are more.
        wait_pct: time waited for data in percent, likewise.
        epoch_s: mean seconds of an epoch's waiting, transfer and compute.
        best: best validation metric; `metric` is its name, such as validation/accuracy.
        value: lowest validation loss.
        objective: what a search makes large or small.
    """

    number: int
    settings: Mapping[str, str]
    command: str
    status: str
    error: str = ""
    samples_per_s: float | None = None
    wait_pct: float | None = None
    epoch_s: float | None = None
    best: float | None = None
    metric: str = ""
    value: float | None = None
    objective: float | None = None


@dataclass(frozen=True)
class Group:
    """Jobs that differ in nothing but the seed; of one job where no seeds are swept."""

    settings: Mapping[str, str]
    results: Sequence[Result]

    def values(self, name: str) -> list[float]:
        """The finite values of one figure, such as `samples_per_s`, of the jobs that have it."""
        found = (getattr(result, name) for result in self.results)
        return [value for value in found if value is not None and math.isfinite(value)]

    def mean(self, name: str) -> float | None:
        """Mean of a figure over the jobs that have it."""
        values = self.values(name)
        return statistics.fmean(values) if values else None

    def spread(self, name: str) -> float | None:
        """Standard deviation of a figure, for at least two jobs."""
        values = self.values(name)
        return statistics.stdev(values) if len(values) > 1 else None


def read_summary(folder: Path) -> dict[str, Any]:
    """The job's summary.json; empty where it left none."""
    try:
        found = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def figures(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A finished run's figures, as `Result` names them."""
    history = summary.get("history") or []
    best = summary.get("best") or {}
    metric = next((name for name, _ in _METRICS if name in best), "")
    spent = summary.get("phases_s") or {}
    return {
        "samples_per_s": steady(summary, "loader/samples_per_s"),
        "wait_pct": steady(summary, "loader/wait_pct"),
        "epoch_s": sum(spent.get(name, 0.0) for name in _SPENT) / len(history) if history and spent else None,
        "best": best.get(metric),
        "metric": metric,
        "value": best.get("validation/loss"),
    }


def steady(summary: Mapping[str, Any], metric: str) -> float | None:
    """Median of a metric over a run's epochs, without the first where there are more: it is cold."""
    history = summary.get("history") or []
    values = [epoch.get(metric) for epoch in history[1:] or history]
    kept = [float(value) for value in values if value is not None and math.isfinite(value)]
    return statistics.median(kept) if kept else None


def swept(overrides: Sequence[Sequence[str]]) -> list[str]:
    """The keys that do not have the same value in every job, in the order of the command line."""
    chosen = [settings(job) for job in overrides]
    keys = list(dict.fromkeys(key for job in chosen for key in job))
    return [key for key in keys if len({job.get(key) for job in chosen}) > 1]


def settings(overrides: Sequence[str]) -> dict[str, str]:
    """`['loader.num_workers=2', '+model.width=8']` as key -> value."""
    parts = (override.lstrip("+").partition("=") for override in overrides)
    return {key: value for key, _, value in parts}


def columns(keys: Sequence[str]) -> list[str]:
    """The settings that the table shows: workers, batch size, then the other swept keys."""
    return [WORKERS, BATCH_SIZE, *(key for key in keys if key not in (WORKERS, BATCH_SIZE))]


def words(key: str) -> str:
    """A key as a column's head."""
    return _WORDS.get(key, key.rpartition(".")[2].replace("_", " "))


def groups(results: Sequence[Result], keys: Sequence[str]) -> list[Group]:
    """Results that differ in nothing but the seed, together."""
    kept = [key for key in keys if key != SEED]
    found: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        found.setdefault(tuple(result.settings.get(key, "") for key in kept), []).append(result)
    return [Group(dict(zip(kept, values, strict=True)), members) for values, members in found.items()]


def fastest(found: Sequence[Group]) -> Group | None:
    """The group with the most samples per second."""
    return _best(found, "samples_per_s", max)


def most_exact(found: Sequence[Group]) -> Group | None:
    """The group with the best validation metric, the fastest of those that are equal."""
    metric = _metric([result for group in found for result in group.results])
    quick = sorted(found, key=lambda group: -(group.mean("samples_per_s") or 0.0))
    return _best(quick, "best", max if dict(_METRICS).get(metric, False) else min)


def markdown(results: Sequence[Result], keys: Sequence[str], rows: int | None = None) -> str:
    """The best settings with their commands, then the table; over several seeds also means and spread.

    Args:
        keys: what is swept.
        rows: how many jobs the table shows, the fastest first; None: all, in their order.
    """
    found = groups(results, keys)
    parts = [*_headline(found)]
    if SEED in keys:
        parts += ["Over the seeds, mean ± standard deviation:", _seeds(found, results), "Each job:"]
    shown = list(results)
    if rows is not None and rows < len(results):
        shown = sorted(results, key=lambda result: -(result.samples_per_s or 0.0))[:rows]
        parts.append(f"The {rows} fastest of {len(results)} jobs; sweep.csv has all.")
    parts.append(_jobs(shown, keys))
    wrong = [result for result in shown if result.error]
    if wrong:
        parts.append("\n".join(f"- job {r.number} {r.status}: {one_line(r.error)}" for r in wrong))
    return "\n\n".join(parts) + "\n"


def as_csv(results: Sequence[Result], keys: Sequence[str]) -> str:
    """A row for each job, under the keys' own names, with full precision."""
    shown = columns(keys)
    metric = _metric(results)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ("samples_per_s", "wait_pct", "epoch_s", "best")
    writer.writerow(["job", *shown, *names[:3], metric or "best", "status", "error", "command"])
    for r in results:
        measured = ["" if (value := getattr(r, name)) is None else value for name in names]
        chosen = [r.settings.get(key, "") for key in shown]
        writer.writerow([r.number, *chosen, *measured, r.status, one_line(r.error), r.command])
    return text.getvalue()


def chosen_words(chosen: Mapping[str, str]) -> str:
    """`workers 2, batch size 128`."""
    return ", ".join(f"{words(key)} {value}" for key, value in chosen.items()) or "the only setting"


def _headline(found: Sequence[Group]) -> list[str]:
    quick, exact = fastest(found), most_exact(found)
    if quick is None:
        return ["**No job finished.**"]
    lines = [
        f"**Fastest: {chosen_words(quick.settings)}** · {_mean(quick, 'samples_per_s')} samples/s"
        f" · waited {_mean(quick, 'wait_pct')} %",
        _command(quick),
    ]
    if exact is not None:
        name = words_of_metric(_metric(exact.results))
        reached = {mean for group in found if (mean := group.mean("best")) is not None}
        if len(reached) == 1 and len(found) > 1:
            lines.append(f"The best {name} is {_mean(exact, 'best')} with every setting.")
        else:
            lines.append(f"**Best {name}: {chosen_words(exact.settings)}** · {_mean(exact, 'best')}")
        if exact is not quick:
            lines.append(_command(exact))
    return lines


def words_of_metric(metric: str) -> str:
    """`validation accuracy` for validation/accuracy."""
    return metric.replace("/", " ").replace("_", " ") or "validation metric"


def fenced(command: str) -> str:
    """A command in Markdown, to be copied."""
    return f"```sh\n{command}\n```"


def _command(group: Group) -> str:
    return fenced(next(result.command for result in group.results if result.status == "FINISHED"))


def _jobs(results: Sequence[Result], keys: Sequence[str]) -> str:
    shown = columns(keys)
    head = ["job", *map(words, shown), "samples/s", "wait %", "epoch s", words_of_metric(_metric(results)), "status"]
    names = ("samples_per_s", "wait_pct", "epoch_s", "best")
    rows = [
        [str(r.number), *(r.settings.get(key, "") for key in shown), *(cell(getattr(r, n)) for n in names), r.status]
        for r in results
    ]
    return table(head, rows)


def _seeds(found: Sequence[Group], results: Sequence[Result]) -> str:
    names = ("samples_per_s", "wait_pct", "epoch_s", "best")
    keys = list(found[0].settings)
    metric = words_of_metric(_metric(results))
    head = [*map(words, keys), "finished", "samples/s", "wait %", "epoch s", metric]
    rows = []
    for group in found:
        finished = sum(result.status == "FINISHED" for result in group.results)
        rows.append(
            [*group.settings.values(), f"{finished} of {len(group.results)}", *(_mean(group, name) for name in names)]
        )
    return table(head, rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Padded, so that it also reads well in a terminal."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in [head, *rows]]
    widths = [max(3, *(len(row[i]) for row in escaped)) for i in range(len(head))]
    lines = ["| " + " | ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in escaped]
    lines.insert(1, "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")
    return "\n".join(lines)


def _best(found: Sequence[Group], name: str, better: Callable[..., tuple[float, Group]]) -> Group | None:
    """The first of the best."""
    measured = [(value, group) for group in found if (value := group.mean(name)) is not None]
    return better(measured, key=lambda pair: pair[0])[1] if measured else None


def _mean(group: Group, name: str) -> str:
    spread = group.spread(name)
    return cell(group.mean(name)) + (f" ± {number(spread)}" if spread is not None else "")


def cell(value: float | None) -> str:
    """A figure, empty where there is none."""
    return "" if value is None else number(value)


def _metric(results: Sequence[Result]) -> str:
    return next((result.metric for result in results if result.metric), "")


def one_line(text: str) -> str:
    """An error as a cell of a table holds it."""
    line = " ".join(text.split())
    return line if len(line) <= _ERROR_CHARACTERS else line[: _ERROR_CHARACTERS - 1] + "…"
