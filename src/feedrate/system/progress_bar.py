"""Progress of a command that writes many things: a bar in a terminal, a line for each tenth elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import Progress


@contextmanager
def progress_bar(things: str, total: int, kept: int) -> Iterator[Callable[[int], None]]:
    """Yields a function that shows how many things ('samples') are written; `kept` exist from before."""
    if kept:
        print(f"{kept:,} of {total:,} {things} are there from before")
    if sys.stdout.isatty():
        with Progress(auto_refresh=False) as bar:  # no thread of its own, which would make forking unsafe
            task = bar.add_task(f"writing {things}", total=total, completed=kept)
            yield lambda count: bar.update(task, completed=count, refresh=True)
        return
    tenth = 10 * kept // total

    def show(count: int) -> None:
        nonlocal tenth
        if 10 * count // total > tenth:
            tenth = 10 * count // total
            print(f"{10 * tenth} %: {count:,} of {total:,} {things} are written", flush=True)

    yield show
