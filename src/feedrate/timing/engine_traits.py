"""The traits of a loader's engine by which times are judged and remedies chosen."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineTraits:
    """How an engine loads."""

    shares_interpreter: bool  # it loads in the training process, and competes with the step for the GIL
    has_processes: bool  # its workers are processes, whose CPU time and memory are their own
    prefetches: bool  # it loads batches before they are requested
