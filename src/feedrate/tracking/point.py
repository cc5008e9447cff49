"""One measured value on its way to the tracker.

Points are collected in a list inside the timed loop and sent outside of it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Point:
    """A metric's value.

    Attributes:
        name: as in the README's table of metrics; the unit is part of it.
        value: finite or not; the tracker decides what to do with NaN.
        step: epoch, unless the metric's description says otherwise.
        time_ms: wall-clock time in milliseconds since 1970, for the tracker's time axis only.
    """

    name: str
    value: float
    step: int
    time_ms: int


def points(values: dict[str, float], step: int) -> list[Point]:
    """The values as points of one step, stamped with the present time."""
    now = time.time_ns() // 1_000_000
    return [Point(name, float(value), step, now) for name, value in values.items()]
