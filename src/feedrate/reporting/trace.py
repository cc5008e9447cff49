"""Some steps as a trace that Perfetto and chrome://tracing open: a row per worker, and those of the training loop.

Source of the form: Trace Event Format, https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

from typing import Any

from feedrate.timing.epoch_times import EpochTimes
from feedrate.timing.stages import STAGES

WINDOW = 60  # steps
_LOOP = ("step", "transfer", "wait")


def rows_of(times: EpochTimes) -> dict[str, list[tuple[int, int, int]]]:
    """What is drawn: row -> (begin, end, step), nanoseconds since the first thing of all, steps from 0.

    The rows of the training loop stand first, then a row per worker; without workers the main thread makes the batches
    while the loop waits.
    """
    begin = times.asked
    got = begin + times.wait
    moved = got + times.transfer
    known = times.end > 0
    first = int(min(begin.min(), times.begin[known].min() if known.any() else begin.min()))
    spans = {"step": (moved, moved + times.compute), "transfer": (got, moved), "wait": (begin, got)}
    rows = {
        name: [(int(b) - first, int(e) - first, i) for i, (b, e) in enumerate(zip(*spans[name], strict=True)) if e > b]
        for name in _LOOP
    }
    for worker in sorted(set(times.worker[known].tolist())):
        made = known & (times.worker == worker)
        name = "load, main thread" if worker < 0 else f"worker {worker}"
        rows[name] = [(int(times.begin[i]) - first, int(times.end[i]) - first, i) for i in made.nonzero()[0].tolist()]
    return rows


def trace(times: EpochTimes) -> dict[str, Any]:
    """The trace as JSON-able values; what a batch's making was spent on stands beside it, in ms."""
    events: list[dict[str, Any]] = []
    for number, (row, spans) in enumerate(rows_of(times).items()):
        about = {"pid": 0, "tid": number}
        events.append({"name": "thread_name", "ph": "M", "args": {"name": row}, **about})
        events.append({"name": "thread_sort_index", "ph": "M", "args": {"sort_index": number}, **about})
        for begin, end, step in spans:
            more: dict[str, Any] = {"batch": step, "samples": int(times.samples[step])}
            if row not in _LOOP:
                spent = zip(STAGES, times.stages[step].tolist(), strict=True)
                more |= {f"{stage}_ms": round(ns / 1e6, 4) for stage, ns in spent if ns}
                more["cpu_ms"] = round(int(times.load_cpu[step]) / 1e6, 4)
            name = row if row in _LOOP else "load"
            when = {"ts": begin / 1e3, "dur": (end - begin) / 1e3}  # microseconds
            events.append({"name": name, "ph": "X", **when, "args": more, **about})
    return {"traceEvents": events, "displayTimeUnit": "ms"}
