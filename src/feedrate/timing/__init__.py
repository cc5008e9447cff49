"""Where the time goes: the clock, the account of an epoch, the verdict."""

from feedrate.timing.clock import Clock
from feedrate.timing.epoch_times import EpochTimes
from feedrate.timing.stages import Load, stage

__all__ = ["Clock", "EpochTimes", "Load", "stage"]
