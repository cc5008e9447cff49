"""What timing and remedies need to know about a loader's engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineTraits:
    """How an engine loads.

    Attributes:
        shares_interpreter: it loads in the training process, and competes with the step for the GIL.
        has_processes: its workers are processes, whose CPU time and memory are their own.
        prefetches: it loads batches before they are requested.
    """

    shares_interpreter: bool
    has_processes: bool
    prefetches: bool
