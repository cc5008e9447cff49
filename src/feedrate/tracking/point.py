"""Measured values: collected in a list inside the timed loop, given to the tracker outside of it."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Point:
    """A metric's value.

    Attributes:
        name: with its unit.
        value: finite or not.
        step: epoch, unless the metric's description says otherwise.
        time_ms: wall-clock time in milliseconds since 1970, for the time axis of MLflow's pages.
    """

    name: str
    value: float
    step: int
    time_ms: int


def points(values: dict[str, float], step: int) -> list[Point]:
    """The values as points of one step, at the present time."""
    now = time.time_ns() // 1_000_000
    return [Point(name, float(value), step, now) for name, value in values.items()]
