"""A gate before the threads that load: closed now and then for a step, which shows how long one takes undisturbed.

Threads share the interpreter with the training. Where they are never idle, no other step in the run could tell.
"""

from __future__ import annotations

import math
import threading

FIRST = 4  # batches for each thread before the gate closes for the first time
GROWTH = 2.0  # from one closing to the next, in batches since the start
LONE = 5  # batches made alone, after which no more are: one of the threads would work while the others wait
SELDOM = 500  # batches for each thread from one closing to the next, at most


class StepProbe:
    """Threads pass it before each batch; it changes when batches are made, and nothing else.

    Closed, it lets those behind it finish, and then nobody in until the training has had a step with nobody there, or
    wants a batch that nobody makes. Then one batch is made alone, which shows whether threads get in each other's way;
    with that the gate is open again. LONE of these are enough: later on it opens for all at once. Where batches are
    ahead of the training, none of this makes it wait.
    """

    def __init__(self, threads: int) -> None:
        self._room: float = math.inf  # threads that may be behind it
        self._behind = self._asked = self._lone = 0
        self._quiet = False  # whether the present step began with the gate closed and nobody behind it
        self._next: float = FIRST * threads
        self._first = self._next
        self._most = SELDOM * threads
        self._changed = threading.Condition()  # re-entrant, as it may be told to stay open by a finaliser

    def enter(self) -> None:
        """A thread is about to make a batch; waits while the gate is closed."""
        with self._changed:
            while self._behind >= self._room:
                self._changed.wait()
            self._behind += 1

    def leave(self) -> None:
        """It has made it."""
        with self._changed:
            self._behind -= 1
            if self._room == 1:
                self._lone += 1
                self._open(math.inf)

    def asked(self, begun: bool) -> None:
        """The training asks for a batch.

        Args:
            begun: whether a thread has begun with it, so that it comes also while the gate is closed.
        """
        self._asked += 1
        if self._room and (self._asked < self._next or self._room == 1 or not begun):
            return
        with self._changed:
            if self._room:
                self._room = 0
                self._next = self._asked + min(self._asked * (GROWTH - 1), self._most)
            elif self._quiet or not begun:
                self._open(1 if self._lone < LONE else math.inf)
                return
            self._quiet = not self._behind

    def rest(self) -> None:
        """Nobody asks for a while."""
        with self._changed:
            if self._room != math.inf:
                self._open(math.inf)

    def begin_anew(self) -> None:
        """As at first: an epoch follows whose account is to stand for itself."""
        with self._changed:
            self._asked = self._lone = 0
            self._next = self._first

    def stay_open(self) -> None:
        """Nobody asks any more."""
        with self._changed:
            self._next = math.inf
            self._open(math.inf)

    def _open(self, room: float) -> None:
        self._room = room
        self._changed.notify_all()
