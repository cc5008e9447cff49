"""Progress of a command that writes many things: a bar in a terminal, a line for each tenth elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def progress_bar(things: str, total: int, kept: int) -> Iterator[Callable[[int], None]]:
    """Yields a function that shows how many things ('samples') are written; `kept` exist from before."""
    if kept:
        print(f"{kept:,} of {total:,} {things} are there from before")
    if sys.stdout.isatty():
        columns = (TextColumn(f"writing {things}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        # no thread of its own, which would make forking unsafe
        with Progress(*columns, console=Console(file=sys.stdout), auto_refresh=False) as bar:
            task = bar.add_task("", total=total, completed=kept)
            yield lambda count: bar.update(task, completed=count, refresh=True)
        return
    tenth = 10 * kept // total

    def show(count: int) -> None:
        nonlocal tenth
        if 10 * count // total > tenth:
            tenth = 10 * count // total
            print(f"{10 * tenth} %: {count:,} of {total:,} {things} are written", flush=True)

    yield show
