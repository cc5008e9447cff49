"""When two measurements count as different: one rule for sweeps, searches, tune.py and bench.py.

The noise of a rate is twice the standard error of its measurements (epochs, repeats); with fewer than three of them,
that of ten blocks of steps within one. Two rates are equal if they differ by less than 3 %, or by no more than the root
of the sum of their squared noises.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

FLOOR = 0.03  # rates that differ by less, as a share, are equal: so do two runs of one command
UNLIKE = 1.10  # factor between steps or free cores above which the machine was not the same
FEW = 3  # least number of measurements whose scatter is used alone
BLOCKS = 10  # of the steps of one measurement

_T = TypeVar("_T")


@dataclass(frozen=True)
class Measured:
    """A value, its noise in the same unit, and the share of it that always counts as noise."""

    value: float
    noise: float = 0.0
    floor: float = FLOOR

    @property
    def least(self) -> float:
        """The least difference that counts, in the value's unit."""
        return self.floor * abs(self.value)

    def __str__(self) -> str:
        return rounded(self.value, max(self.noise, self.least))


def noise(values: Sequence[float], within: float = 0.0) -> float:
    """Noise of the mean or median of some measurements, in their unit.

    Args:
        within: noise of a single measurement, from its blocks.
    """
    scatter = 2 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return scatter if len(values) >= FEW else max(scatter, within)


def block_noise(samples: np.ndarray, elapsed: np.ndarray) -> float | None:
    """Noise of the rate of these (steps,), as a share of it; None if there are too few for blocks."""
    if len(samples) < 2 * BLOCKS:
        return None
    blocks = zip(np.array_split(samples, BLOCKS), np.array_split(elapsed, BLOCKS), strict=True)
    rates = [float(block.sum() / max(1, spent.sum())) for block, spent in blocks]
    middle = statistics.fmean(rates)
    return noise(rates) / middle if middle else None


def same(one: Measured, other: Measured) -> bool:
    """Whether they differ by no more than noise."""
    return abs(one.value - other.value) <= max(one.least, other.least, math.hypot(one.noise, other.noise))


def knee(rates: Mapping[_T, Measured], cost: Callable[[_T], Any]) -> _T:
    """The cheapest setting whose rate is the highest one, within the noise."""
    best = max(rates.values(), key=lambda rate: rate.value)
    return min((setting for setting, rate in rates.items() if same(rate, best)), key=cost)


def ranks(values: Sequence[Measured | None], *, largest: bool) -> list[int | None]:
    """Rank of each value, from 1; those equal to the best of the rest share its rank."""
    known = [(value, place) for place, value in enumerate(values) if value is not None]
    known.sort(key=lambda pair: pair[0].value, reverse=largest)
    found: list[int | None] = [None] * len(values)
    leader: Measured | None = None
    rank = 0
    for number, (value, place) in enumerate(known, 1):
        if leader is None or not same(leader, value):
            leader, rank = value, number
        found[place] = rank
    return found


def unlike(values: Sequence[float]) -> bool:
    """Whether step times, or free cores, of jobs that should have the same differ by more than a tenth."""
    return bool(values) and max(values) > UNLIKE * min(values)


def shown(value: float) -> str:
    """A rate or duration of unknown noise, with the digits that two runs would agree on."""
    return str(Measured(value))


def rounded(value: float, unsure: float) -> str:
    """As many digits as its noise leaves: 6,990 for 6,989 with a noise of 20, 7,000 with one of 200."""
    if not math.isfinite(value):
        return str(value)
    if unsure <= 0 or not math.isfinite(unsure):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    digits = -math.floor(math.log10(2 * unsure))
    return f"{round(value, digits):,.{max(0, digits)}f}"
