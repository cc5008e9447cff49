"""Where the time goes: the clock, and points for tracking."""

from feedrate.timing.clock import Clock, EpochTimes
from feedrate.timing.point import Point, points

__all__ = ["Clock", "EpochTimes", "Point", "points"]
