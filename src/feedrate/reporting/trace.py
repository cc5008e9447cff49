"""Some steps as a trace for Perfetto and chrome://tracing: a row for each phase of the training loop and each worker.

Format: Trace Event Format, https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

from typing import Any

from feedrate.timing.epoch_times import EpochTimes
from feedrate.timing.stages import STAGES

TIMELINE_STEPS = 60  # that a timeline shows
_LOOP = ("step", "transfer", "wait")


def rows_of(times: EpochTimes) -> dict[str, list[tuple[int, int, int]]]:
    """Row -> (begin, end, step) of its spans, in nanoseconds since the first event; steps count from 0."""
    begin = times.requested
    received = begin + times.wait
    moved = received + times.transfer
    known = times.end > 0
    first = int(min(begin.min(), times.begin[known].min() if known.any() else begin.min()))
    spans = {"step": (moved, moved + times.compute), "transfer": (received, moved), "wait": (begin, received)}
    rows = {
        name: [(int(b) - first, int(e) - first, i) for i, (b, e) in enumerate(zip(*spans[name], strict=True)) if e > b]
        for name in _LOOP
    }
    for worker in sorted(set(times.worker[known].tolist())):
        loaded = (known & (times.worker == worker)).nonzero()[0].tolist()
        name = "load, main thread" if worker < 0 else f"worker {worker}"
        rows[name] = [(int(times.begin[i]) - first, int(times.end[i]) - first, i) for i in loaded]
    return rows


def trace(times: EpochTimes) -> dict[str, Any]:
    """The trace as JSON-able values; each load has the milliseconds of its stages."""
    events: list[dict[str, Any]] = []
    for number, (row, spans) in enumerate(rows_of(times).items()):
        where = {"pid": 0, "tid": number}
        events.append({"name": "thread_name", "ph": "M", "args": {"name": row}, **where})
        events.append({"name": "thread_sort_index", "ph": "M", "args": {"sort_index": number}, **where})
        for begin, end, step in spans:
            more: dict[str, Any] = {"batch": step, "samples": int(times.samples[step])}
            if row not in _LOOP:
                spent = zip(STAGES, times.stages[step].tolist(), strict=True)
                more |= {f"{stage}_ms": round(ns / 1e6, 4) for stage, ns in spent if ns}
                more["cpu_ms"] = round(int(times.load_cpu[step]) / 1e6, 4)
            name = row if row in _LOOP else "load"
            when = {"ts": begin / 1e3, "dur": (end - begin) / 1e3}  # microseconds
            events.append({"name": name, "ph": "X", **when, "args": more, **where})
    return {"traceEvents": events, "displayTimeUnit": "ms"}
