"""Keeps the host close to the device: it issues at most two steps more than the device has finished.

Without a bound the host would issue a whole epoch while the device computes its first steps; rates would be those of
issuing, and the batches of all those steps would be in the device's memory at once.
"""

from __future__ import annotations

from collections import deque

import torch

STEPS_AHEAD = 2


class HostAhead:
    """The steps that the host has issued and the device may not have finished."""

    def __init__(self) -> None:
        self._ends: deque[torch.Event] = deque()

    def issued(self, end: torch.Event) -> None:
        """A further step was issued, which ends with that event; waits for the end of the step before the last."""
        self._ends.append(end)
        if len(self._ends) > STEPS_AHEAD:
            self._ends.popleft().synchronize()


def record(device: torch.device, timed: bool = False) -> torch.Event:
    """An event after all that was issued on the device's current stream."""
    event = torch.Event(device, enable_timing=timed)
    event.record(torch.accelerator.current_stream(device))
    return event
