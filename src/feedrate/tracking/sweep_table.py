"""The table of a sweep in Markdown and CSV: the best settings first, a row for each job, means over seeds.

The results themselves come from sweep_results.py.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from feedrate.timing.knee import AS_GOOD_PCT, knee
from feedrate.tracking.note import number
from feedrate.tracking.sweep_results import METRICS, SEED, Group, Result, groups, ordered, varying

WORKERS, BATCH_SIZE = "loader.num_workers", "loader.batch_size"
_WORDS = {WORKERS: "workers", BATCH_SIZE: "batch size"}
_ERROR_CHARACTERS = 200
KNEE = f"the fewest workers within {AS_GOOD_PCT} % of the fastest"


def columns(keys: Sequence[str]) -> list[str]:
    """The settings that the table shows: workers, batch size, then the other swept keys."""
    return [WORKERS, BATCH_SIZE, *(key for key in keys if key not in (WORKERS, BATCH_SIZE))]


def words(key: str) -> str:
    """A key as a column's head."""
    return _WORDS.get(key, key.rpartition(".")[2].replace("_", " "))


def fastest(found: Sequence[Group]) -> Group | None:
    """The group with the most samples per second."""
    return _best(found, "samples_per_s", max)


def most_exact(found: Sequence[Group]) -> Group | None:
    """The group with the best validation metric, the fastest of those that are equal."""
    metric = _metric([result for group in found for result in group.results])
    quick = sorted(found, key=lambda group: -(group.mean("samples_per_s") or 0.0))
    return _best(quick, "best", max if dict(METRICS).get(metric, False) else min)


@dataclass(frozen=True)
class Knee:
    """The fewest workers that are as good as any at one batch size, or at one value of what else was swept.

    Attributes:
        group: with these workers.
        over: the other swept key; None: workers alone were swept.
        at_the_end: no larger number was measured, so more may be faster still.
    """

    group: Group
    over: str | None
    at_the_end: bool

    def __str__(self) -> str:
        workers = self.group.settings[WORKERS]
        text = f"{workers} worker{'' if workers == '1' else 's'}"
        text += f" at {words(self.over)} {self.group.settings[self.over]}" if self.over else ""
        return text + (" (the most measured)" if self.at_the_end else "")


def knees(found: Sequence[Group]) -> list[Knee]:
    """One for each value of the other swept key at which two numbers of workers or more were measured.

    None unless workers are swept, alone or with one other key besides the seed.
    """
    keys = varying(found)
    if WORKERS not in keys or len(keys) > 2:
        return []
    over = next((key for key in keys if key != WORKERS), None)
    counts = ordered({group.settings[WORKERS] for group in found})
    kept = []
    for value in ordered({group.settings[over] for group in found}) if over else [""]:
        row = {
            counts.index(group.settings[WORKERS]): (group, rate)
            for group in found
            if (over is None or group.settings[over] == value) and (rate := group.mean("samples_per_s")) is not None
        }
        if len(row) > 1:
            place = knee({place: rate for place, (_, rate) in row.items()}, cost=int)
            kept.append(Knee(row[place][0], over, at_the_end=place == max(row)))
    return kept


def markdown(results: Sequence[Result], keys: Sequence[str], rows: int | None = None, pictures: str = "") -> str:
    """The best settings with their commands, then the table; over several seeds also means and spread.

    Args:
        keys: what is swept.
        rows: how many jobs the table shows, the fastest first; None: all, in their order.
        pictures: Markdown that stands before the table.
    """
    found = groups(results, keys)
    parts = [*_headline(found), *([pictures] if pictures else [])]
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


def best_job(results: Sequence[Result], keys: Sequence[str]) -> tuple[str, dict[str, float]]:
    """The fastest setting in words, and its figures under the names of a run's metrics; means over seeds."""
    group = fastest(groups(results, keys))
    if group is None:
        return "", {}
    names = {"loader/samples_per_s": "samples_per_s", "loader/wait_pct": "wait_pct", "validation/loss": "value"}
    names[_metric(group.results) or "validation/loss"] = "best"
    means = {metric: group.mean(name) for metric, name in names.items()}
    return chosen_words(group.settings), {metric: mean for metric, mean in means.items() if mean is not None}


def chosen_words(chosen: Mapping[str, str]) -> str:
    """`workers 2, batch size 128`."""
    return ", ".join(f"{words(key)} {value}" for key, value in chosen.items()) or "the only setting"


def _headline(found: Sequence[Group]) -> list[str]:
    quick, exact = fastest(found), most_exact(found)
    if quick is None:
        return ["**No job finished.**"]
    lines = [
        f"**Fastest: {chosen_words(quick.settings)}** · {_mean(quick, 'samples_per_s')} samples/s"
        f" · waited {_mean(quick, 'wait_pct')} %"
    ]
    commands = [_command(quick)]
    if exact is not None:
        name = words_of_metric(_metric(exact.results))
        reached = [mean for group in found if (mean := group.mean("best")) is not None]
        if len(set(reached)) == 1 and len(reached) > 1:
            which = "every setting" if len(reached) == len(found) else "every setting that finished"
            lines.append(f"The best {name} is {_mean(exact, 'best')} with {which}.")
        else:
            lines.append(f"**Best {name}: {chosen_words(exact.settings)}** · {_mean(exact, 'best')}")
        if exact is not quick:
            commands.append(_command(exact))
    lines.append(fenced("\n".join(commands)))
    if bends := knees(found):
        lines.append(f"**Knee: {', '.join(map(str, bends))}** · {KNEE}")
    return lines


def words_of_metric(metric: str) -> str:
    """`validation accuracy` for validation/accuracy."""
    return metric.replace("/", " ").replace("_", " ") or "validation metric"


def fenced(command: str) -> str:
    """A command in Markdown, to be copied."""
    return f"```sh\n{command}\n```"


def _command(group: Group) -> str:
    return next(result.command for result in group.results if result.status == "FINISHED")


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
