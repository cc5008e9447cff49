"""Where the time goes: clock, step log, ceilings, model of the pipeline, verdict and remedies."""

from feedrate.timing.clock import Clock
from feedrate.timing.epoch_times import EpochTimes
from feedrate.timing.stages import Load, stage

__all__ = ["Clock", "EpochTimes", "Load", "stage"]
