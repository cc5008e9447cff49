"""The table of a sweep in Markdown and CSV: the best settings first, a row for each job, means over seeds and folds.

How settings are ranked is in sweep_ranks.py.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from feedrate.reporting.run_summary import number
from feedrate.reporting.sweep_ranks import (
    BATCH_SIZE,
    WORKERS,
    Ranking,
    by_speed,
    cost,
    is_about_speed,
    knee_words,
    knees,
    not_the_same,
    ranked,
    words,
)
from feedrate.reporting.sweep_results import Group, Result, groups, is_repeat
from feedrate.timing.noise import rounded

_ERROR_CHARACTERS = 200
_NAMED = 3  # settings that are equal and cost the same
_SPEEDS = {
    "samples_per_s": "samples/s",
    "wait_pct": "wait %",
    "held_pct": "held up %",
    "step_ms": "step ms",
    "free_cores": "free cores",
    "epoch_s": "epoch s",
}


def columns(keys: Sequence[str]) -> list[str]:
    """The settings that the table shows: workers, batch size, then the other swept keys."""
    return [WORKERS, BATCH_SIZE, *(key for key in keys if key not in (WORKERS, BATCH_SIZE))]


def primary(results: Sequence[Result], keys: Sequence[str]) -> Ranking:
    """By speed where only the loader's settings are swept, by the validation metric elsewhere."""
    found = groups(results, keys)
    speed, metric = by_speed(found), ranked(found, "best")
    return speed if (is_about_speed(keys) and speed.first) or not metric.first else metric


def markdown(results: Sequence[Result], keys: Sequence[str], rows: int | None = None, pictures: str = "") -> str:
    """The best settings with their commands, then the table; over seeds and folds also means and spread.

    Args:
        keys: what is swept.
        rows: how many jobs the table shows, the best first; None: all, in their order.
        pictures: Markdown that stands before the table.
    """
    ranking = primary(results, keys)
    parts = [*_headline(ranking), *([pictures] if pictures else [])]
    if repeated := [words(key) for key in keys if is_repeat(key)]:
        parts += _same_jobs(ranking)
        parts += [f"Over {' and '.join(repeated)}, mean ± standard deviation:", _means(ranking), "Each job:"]
    shown = list(results)
    if rows is not None and rows < len(results):
        shown = sorted(results, key=lambda result: ranking.rank_of(result) or len(results) + 1)[:rows]
        parts.append(f"The {rows} best of {len(results)} jobs; sweep.csv has all.")
    parts.append(_jobs(shown, keys, ranking, with_rank=not repeated))
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
    names = (*_SPEEDS, "best", "best_epoch")
    writer.writerow(["job", *shown, *_SPEEDS, metric or "best", "best_epoch", "status", "error", "command"])
    for r in results:
        measured = ["" if (value := getattr(r, name)) is None else value for name in names]
        chosen = [r.settings.get(key, "") for key in shown]
        writer.writerow([r.number, *chosen, *measured, r.status, one_line(r.error), r.command])
    return text.getvalue()


def best_job(results: Sequence[Result], keys: Sequence[str]) -> tuple[str, dict[str, float]]:
    """The best setting in words, and its figures under the names of a run's metrics; means over seeds and folds."""
    first = primary(results, keys).first
    if not first:
        return "", {}
    names = {"loader/samples_per_s": "samples_per_s", "loader/wait_pct": "wait_pct", "validation/loss": "value"}
    names[_metric(first[0].results) or "validation/loss"] = "best"
    means = {metric: first[0].mean(name) for metric, name in names.items()}
    return chosen_words(first[0].settings), {metric: mean for metric, mean in means.items() if mean is not None}


def chosen_words(chosen: Mapping[str, str]) -> str:
    """`workers 2, batch size 128`."""
    return ", ".join(f"{words(key)} {value}" for key, value in chosen.items()) or "the only setting"


def _headline(ranking: Ranking) -> list[str]:
    found = ranking.groups
    speed, exact = by_speed(found), ranked(found, "best")
    if not speed.first and not exact.first:
        return ["**No job finished.**"]
    about_speed = ranking.by != "best"
    lines = [_speed_line(speed)] if speed.first else ["No job has enough steps for a rate."]
    lines += [line for line in [not_the_same(found)] if line]
    if exact.first:
        lines.insert(len(lines) if about_speed else 0, _metric_line(exact))
    order = (speed, exact) if about_speed else (exact, speed)
    commands = dict.fromkeys(_command(one.first[0]) for one in order if one.first)
    lines.append(fenced("\n".join(commands)))
    if bends := knees(speed):
        lines.append(f"**Knee: {', '.join(map(str, bends))}** · {knee_words(speed)}")
    return lines


def _speed_line(speed: Ranking) -> str:
    """The fastest setting, or the one that waits least."""
    best, fastest = speed.first[0], speed.by == "samples_per_s"
    parts = [f"**{'Fastest' if fastest else 'Waits least'}: {first_words(speed)}**"]
    if speed.undecided:
        parts = [f"**Every setting {'is as fast' if fastest else 'waits as little'}, within the noise**"]
    parts += [f"{figure(best, 'samples_per_s')} samples/s", f"waited {figure(best, 'wait_pct')} %"]
    if best.mean("held_pct"):
        parts.append(f"held up for {figure(best, 'held_pct')} %")
    return " · ".join([*parts, *_equals(speed)])


def _metric_line(exact: Ranking) -> str:
    """The setting with the best validation metric."""
    named = exact.first if exact.undecided else _least(exact)[:_NAMED]
    name = words_of_metric(_metric(exact.first[0].results))
    found = (result.best_epoch for group in named for result in group.results)
    epochs = sorted({epoch for epoch in found if epoch is not None})
    reached = list(dict.fromkeys(figure(group, "best") for group in named))
    equal = len(reached) == 1
    shown = reached[0] if equal else " or ".join(figure(group, "best") for group in named)
    if epochs:
        shown += f" in epoch {epochs[0]}" if len(epochs) == 1 else f" in epochs {epochs[0]} to {epochs[-1]}"
    if exact.undecided:
        which = "every setting" if None not in exact.ranks else "every setting that finished"
        return f"The best {name} is {shown if equal else 'the same within the noise'} with {which}."
    return " · ".join([f"**Best {name}: {first_words(exact)}**", shown, *_equals(exact)])


def first_words(ranking: Ranking) -> str:
    """The settings of the first rank that cost the least."""
    least = _least(ranking)
    named = " or ".join(chosen_words(group.settings) for group in least[:_NAMED])
    return named + (f" or {len(least) - _NAMED} more" if len(least) > _NAMED else "")


def _least(ranking: Ranking) -> list[Group]:
    return [group for group in ranking.first if cost(group) == cost(ranking.first[0])]


def _equals(ranking: Ranking) -> list[str]:
    """How many share the first rank, and which is the cheapest of those."""
    best, last = ranking.first[0], ranking.first[-1]
    if ranking.undecided:
        return [f"the cheapest: {first_words(ranking)}"] * (cost(best) != cost(last))
    if len(ranking.first) == 1:
        return []
    return [
        f"{len(ranking.first)} settings are equal within the noise"
        + ", the cheapest named" * (cost(best) != cost(last))
    ]


def words_of_metric(metric: str) -> str:
    """`validation accuracy` for validation/accuracy."""
    return metric.replace("/", " ").replace("_", " ") or "validation metric"


def fenced(command: str) -> str:
    """A command in Markdown, to be copied."""
    return f"```sh\n{command}\n```"


def _command(group: Group) -> str:
    return next(result.command for result in group.results if result.status == "FINISHED")


def _jobs(results: Sequence[Result], keys: Sequence[str], ranking: Ranking, *, with_rank: bool) -> str:
    shown, names = columns(keys), _figures(ranking, results)
    head = ["job", *map(words, shown), *["rank"] * with_rank, *names.values(), "status"]
    rows = []
    for r in results:
        rank = ["" if (found := ranking.rank_of(r)) is None else str(found)] * with_rank
        alone = Group(r.settings, [r])
        chosen = (r.settings.get(key, "") for key in shown)
        rows.append([str(r.number), *chosen, *rank, *(figure(alone, name) for name in names), r.status])
    return table(head, rows)


def _same_jobs(ranking: Ranking) -> list[str]:
    """That jobs were given more than once, so that the metrics of only one of each are counted."""
    jobs = {result.number for group in ranking.groups for result in group.results}
    again = sorted(jobs - {result.number for group in ranking.groups for result in group.distinct})
    if not again:
        return []
    who = f"Job {again[0]} repeats another and its" if len(again) == 1 else f"{len(again)} jobs repeat others and their"
    return [f"{who} metric counts once: the settings, seed and fold are the same."]


def _means(ranking: Ranking) -> str:
    results = [result for group in ranking.groups for result in group.results]
    names = _figures(ranking, results)
    del names["best_epoch"]
    head = [*map(words, ranking.groups[0].settings), "rank", "finished", *names.values()]
    rows = []
    for group, rank in zip(ranking.groups, ranking.ranks, strict=True):
        jobs = group.distinct
        finished = f"{sum(result.status == 'FINISHED' for result in jobs)} of {len(jobs)}"
        figures = (figure(group, name) for name in names)
        rows.append([*group.settings.values(), "" if rank is None else str(rank), finished, *figures])
    return table(head, rows)


def _figures(ranking: Ranking, results: Sequence[Result]) -> dict[str, str]:
    """Columns of figures -> their heads, what the ranking is about first."""
    speeds = {name: head for name, head in _SPEEDS.items() if name != "held_pct" or any(r.held_pct for r in results)}
    metric = {"best": words_of_metric(_metric(results)), "best_epoch": "best epoch"}
    return {**metric, **speeds} if ranking.by == "best" else {**speeds, **metric}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Padded, so that it also reads well in a terminal."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in [head, *rows]]
    widths = [max(3, *(len(row[i]) for row in escaped)) for i in range(len(head))]
    lines = ["| " + " | ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in escaped]
    lines.insert(1, "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")
    return "\n".join(lines)


def figure(group: Group, name: str) -> str:
    """A figure with as many digits as its noise leaves, over several jobs with its standard deviation; empty: none."""
    measured, spread = group.measured(name), group.spread(name)
    if measured is None:
        return ""
    if name.endswith("_pct"):
        texts = [
            f"{value:.0f}" if measured.value >= 10 else f"{value:.1f}" for value in (measured.value, spread or 0.0)
        ]
    elif name == "free_cores":
        texts = [f"{value:.1f}" for value in (measured.value, spread or 0.0)]
    else:
        two_digits = (spread or 0.0) / 20
        metric = rounded(measured.value, two_digits) if two_digits else number(measured.value)
        texts = [metric if name.startswith("best") else str(measured), rounded(spread or 0.0, two_digits)]
    return texts[0] if spread is None else " ± ".join(texts)


def cell(value: float | None) -> str:
    """A figure, empty where there is none."""
    return "" if value is None else number(value)


def _metric(results: Sequence[Result]) -> str:
    return next((result.metric for result in results if result.metric), "")


def one_line(text: str) -> str:
    """An error as a cell of a table holds it."""
    line = " ".join(text.split())
    return line if len(line) <= _ERROR_CHARACTERS else line[: _ERROR_CHARACTERS - 1] + "…"
