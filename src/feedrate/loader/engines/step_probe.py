"""Pauses the loading threads now and then for one step, to measure how long a step takes undisturbed."""

from __future__ import annotations

import math
import threading

FIRST = 4  # batches of each thread before the first pause
GROWTH = 2.0  # of the number of batches since the start, from one pause to the next
LONE = 5  # most batches that are loaded alone
SELDOM = 500  # batches of each thread from one pause to the next, at most


class StepProbe:
    """A gate that threads pass before each batch. It affects when batches are loaded, but not which.

    When it closes, no other batch is begun until training has had a step without loading, or requests a batch that is
    not begun. Then, LONE times, one batch is loaded alone, which shows whether threads slow each other down.
    """

    def __init__(self, threads: int) -> None:
        self._room: float = math.inf  # threads that may load
        self._loading = self._requests = self._lone = 0
        self._quiet = False  # whether the current step began while nothing was loading
        self._next = self._first = float(FIRST * threads)
        self._most = SELDOM * threads
        self._changed = threading.Condition()  # re-entrant, as a finaliser may call stay_open

    def enter(self) -> None:
        """A thread is about to load a batch; waits while the gate is closed."""
        with self._changed:
            while self._loading >= self._room:
                self._changed.wait()
            self._loading += 1

    def leave(self) -> None:
        """A thread has loaded its batch."""
        with self._changed:
            self._loading -= 1
            if self._room == 1:
                self._lone += 1
                self._open(math.inf)

    def requested(self, begun: bool) -> None:
        """Training requests a batch; `begun`: a thread is loading it, and will deliver it while the gate is closed."""
        self._requests += 1
        if self._room and (self._requests < self._next or self._room == 1 or not begun):
            return
        with self._changed:
            if self._room:
                self._room = 0
                self._next = self._requests + min(self._requests * (GROWTH - 1), self._most)
            elif self._quiet or not begun:
                self._open(1 if self._lone < LONE else math.inf)
                return
            self._quiet = not self._loading

    def open(self) -> None:
        """Opens the gate; to be called when no batch is requested for a while."""
        with self._changed:
            if self._room != math.inf:
                self._open(math.inf)

    def restart(self) -> None:
        """Pauses as often as at first, for an epoch that is measured separately."""
        with self._changed:
            self._requests = self._lone = 0
            self._next = self._first

    def stay_open(self) -> None:
        """Opens the gate and never closes it again."""
        with self._changed:
            self._next = math.inf
            self._open(math.inf)

    def _open(self, room: float) -> None:
        self._room = room
        self._changed.notify_all()
