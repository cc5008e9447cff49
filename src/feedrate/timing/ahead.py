"""Keeps the host at most two steps ahead of the device, so that rates and memory are those of the device."""

from __future__ import annotations

from collections import deque

import torch

STEPS_AHEAD = 2


class HostAhead:
    """Steps that the host has issued and the device may not have finished."""

    def __init__(self) -> None:
        self._ends: deque[torch.Event] = deque()

    def issued(self, end: torch.Event) -> None:
        """Adds a step that ends with this event; waits for the end of the step before the last."""
        self._ends.append(end)
        if len(self._ends) > STEPS_AHEAD:
            self._ends.popleft().synchronize()


def record(device: torch.device, timed: bool = False) -> torch.Event:
    """An event recorded on the device's current stream."""
    event = torch.Event(device, enable_timing=timed)
    event.record(torch.accelerator.current_stream(device))
    return event
