"""Which settings of a sweep are the best, and by what they are compared; settings within the noise share a rank.

The figures come from sweep_results.py, the rule for noise is in timing/noise.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from feedrate.reporting.sweep_results import METRICS, Group, Result, is_number, is_repeat, ordered, varying
from feedrate.timing.noise import Measured, knee, ranks, shown, unlike

WORKERS, BATCH_SIZE = "loader.num_workers", "loader.batch_size"
ENGINE, PREFETCH = "loader.engine", "loader.prefetch_factor"
_WORDS = {WORKERS: "workers", BATCH_SIZE: "batch size"}
_MANY = 1e9  # workers, where it is no number


@dataclass(frozen=True)
class Ranking:
    """Settings in their order by one figure.

    Attributes:
        by: that figure: best, samples_per_s, or fed_pct, the share of the time that was not waited.
        groups: the settings.
        ranks: of each, from 1; None where it has no such figure.
    """

    by: str
    groups: Sequence[Group]
    ranks: Sequence[int | None]

    @property
    def first(self) -> list[Group]:
        """All that share the first rank, the cheapest first; none where none has the figure."""
        return sorted((group for group, rank in zip(self.groups, self.ranks, strict=True) if rank == 1), key=cost)

    @property
    def undecided(self) -> bool:
        """Whether several settings were measured, and all of them are equal."""
        return len(self.first) > 1 and all(rank in (1, None) for rank in self.ranks)

    def rank_of(self, result: Result) -> int | None:
        """Of the setting that a job belongs to."""
        pairs = zip(self.groups, self.ranks, strict=True)
        return next((rank for group, rank in pairs if result in group.results), None)


def ranked(found: Sequence[Group], by: str) -> Ranking:
    """The settings ranked by one figure."""
    metric = next((result.metric for group in found for result in group.results if result.metric), "")
    largest = by != "best" or dict(METRICS).get(metric, False)
    return Ranking(by, found, ranks([group.measured(by) for group in found], largest=largest))


def by_speed(found: Sequence[Group]) -> Ranking:
    """Ranked by samples/s; by waiting where the machine was not the same for all jobs, so that rates do not compare."""
    return ranked(found, "fed_pct" if not_the_same(found) else "samples_per_s")


def is_about_speed(keys: Sequence[str]) -> bool:
    """Whether nothing but the loader's settings is swept; all else is swept for its effect on the metric."""
    own = [key for key in keys if not is_repeat(key)]
    return not keys or (bool(own) and all(key == "loader" or key.startswith("loader.") for key in own))


def cost(group: Group) -> tuple[float, bool, float]:
    """What is lower needs less: cores first, then memory."""
    settings = group.settings
    numbers = [float(text) if is_number(text := settings.get(key, "")) else _MANY for key in (WORKERS, PREFETCH)]
    return numbers[0], settings.get(ENGINE) == "process", numbers[1]


def not_the_same(found: Sequence[Group], job: str = "job") -> str:
    """That compute steps, or free cores, differed by more than a tenth between jobs; nothing where they did not.

    Args:
        job: what each is called.
    """
    results = [result for group in found for result in group.results]
    cores = [result for result in results if result.free_cores is not None and math.isfinite(result.free_cores)]
    fewer = unlike([result.free_cores or 0.0 for result in cores])
    facts = []
    if steps := _unlike_steps(results):
        quick, slow = steps
        at = f" at batch size {slow.settings[BATCH_SIZE]}" if BATCH_SIZE in slow.settings else ""
        facts.append(
            f"the compute step{at} took {shown(quick.step_ms or 0.0)} ms in {job} {quick.number} and "
            f"{shown(slow.step_ms or 0.0)} ms in {job} {slow.number}"
        )
    if fewer:
        few = min(cores, key=lambda result: result.free_cores or 0.0)
        many = max(cores, key=lambda result: result.free_cores or 0.0)
        facts.append(
            f"{many.free_cores:.1f} cores were free for {job} {many.number} and {few.free_cores:.1f} for {job} "
            f"{few.number}"
        )
    if not facts:
        return ""
    why = "" if fewer or not cores else f" with as many cores free (a {job}'s own workers may slow its step)"
    return f"**Samples/s do not compare:** {', and '.join(facts)}{why}; so speed is ranked by waiting."


def _unlike_steps(results: Sequence[Result]) -> tuple[Result, Result] | None:
    """The jobs with the shortest and the longest step of those that should have the same, where they differ most."""
    alike: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        if result.step_ms is not None and math.isfinite(result.step_ms):
            kept = (value for key, value in result.settings.items() if not _only_feeds(key))
            alike.setdefault(tuple(kept), []).append(result)
    far = []
    for some in alike.values():
        quick = min(some, key=lambda result: result.step_ms or 0.0)
        slow = max(some, key=lambda result: result.step_ms or 0.0)
        if unlike([quick.step_ms or 0.0, slow.step_ms or 0.0]):
            far.append((quick, slow))
    return max(far, key=lambda pair: (pair[1].step_ms or 0.0) / max(1e-9, pair[0].step_ms or 0.0), default=None)


def _only_feeds(key: str) -> bool:
    """Whether a step computes the same whatever the key's value."""
    return is_repeat(key) or key == "loader" or (key.startswith("loader.") and key != BATCH_SIZE)


# ---------------------------------------------------------------------------------------------------------
# knees
# ---------------------------------------------------------------------------------------------------------


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


def knees(ranking: Ranking) -> list[Knee]:
    """One for each value of the other swept key at which two numbers of workers or more were measured.

    None unless workers are swept, alone or with one other key besides seed and fold.
    """
    found = ranking.groups
    keys = varying(found)
    if WORKERS not in keys or len(keys) > 2:
        return []
    over = next((key for key in keys if key != WORKERS), None)
    counts = ordered({group.settings[WORKERS] for group in found})
    kept = []
    for value in ordered({group.settings[over] for group in found}) if over else [""]:
        row: dict[int, tuple[Group, Measured]] = {
            counts.index(group.settings[WORKERS]): (group, rate)
            for group in found
            if (over is None or group.settings[over] == value) and (rate := group.measured(ranking.by)) is not None
        }
        if len(row) > 1:
            place = knee({place: rate for place, (_, rate) in row.items()}, cost=int)
            kept.append(Knee(row[place][0], over, at_the_end=place == max(row)))
    return kept


def knee_words(ranking: Ranking) -> str:
    """What a knee is."""
    as_good = "are as fast" if ranking.by == "samples_per_s" else "wait as little"
    return f"the fewest workers that {as_good} as any, within the noise"


def words(key: str) -> str:
    """A key as a column's head."""
    return _WORDS.get(key, key.rpartition(".")[2].replace("_", " "))
