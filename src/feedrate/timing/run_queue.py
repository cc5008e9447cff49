"""How long threads stood in the queue for a core although they could have run, as Linux counts it.

Elsewhere nothing is known of it, and it counts as none.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable
from pathlib import Path

Task = tuple[int, int]  # process and thread, as the system numbers them


def main_task() -> Task:
    """The present process and its main thread."""
    return os.getpid(), threading.main_thread().native_id or os.getpid()


def delay_ns(tasks: Iterable[Task]) -> int:
    """Nanoseconds since their start, of all tasks together; those that are gone count as none.

    Source: the second number of /proc/PID/task/TID/schedstat, Linux's Documentation/scheduler/sched-stats.
    """
    found = 0
    for process, thread in tasks:
        with contextlib.suppress(OSError, ValueError, IndexError):
            found += int(Path(f"/proc/{process}/task/{thread}/schedstat").read_text().split()[1])
    return found
