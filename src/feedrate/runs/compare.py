"""Compares runs: a table of what differs in configuration, data, code version and results; equal keys are left out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from feedrate.runs.provenance import size_of_diff
from feedrate.runs.saved import SavedRun
from feedrate.system.text import flatten
from feedrate.tracking.tracker import COMMIT_TAG

ABSENT, UNKNOWN = "-", "not recorded"
CONTENT = "content digest"  # only of runs with loader.content_digest=true
COVERED = {"data digest": "IDs, labels", "order digest": "order", CONTENT: "content"}
WIDEST = 44  # characters of a cell; a longer value is shortened in its middle
_LEFT_OUT = ("system/", "best/")  # readings that are never equal; figures that have rows of their own
_ORDER = ("test/", "validation/", "train/")  # of results; the others follow


@dataclass(frozen=True)
class Facts:
    """The facts of one run, by section (configuration, data, code, results) and key; `name` is the column's title."""

    name: str
    sections: Mapping[str, Mapping[str, Any]]


def facts(name: str, saved: SavedRun) -> Facts:
    """The facts of a run, from MLflow where it was recorded, else from its folder."""
    summary, recorded = saved.summary, saved.recorded
    tags: Mapping[str, str] = recorded.tags if recorded is not None else {}
    metrics = recorded.metrics if recorded is not None else summary.get("metrics") or {}
    best = summary.get("best") or {k.replace("best/", "validation/"): v for k, v in metrics.items() if "best/" in k}
    epoch = summary.get("best_epoch", metrics.get("best/epoch"))
    results: dict[str, Any] = {
        "status": recorded.status if recorded is not None else summary.get("status"),
        "best epoch": None if epoch is None else int(epoch),
        **{f"best {k}": best[k] for k in sorted(best) if k.startswith("validation/") and k != "validation/epoch"},
        **{key: metrics[key] for key in sorted(metrics, key=_rank) if not key.startswith(_LEFT_OUT)},
        "error": tags.get("feedrate.error", summary.get("error")),
    }
    data = {}
    for key in COVERED:
        digest = summary.get(key.replace(" ", "_"))
        if digest or key != CONTENT:
            data[key] = str(digest)[:12] if digest else UNKNOWN
    settings = flatten({key: value for key, value in saved.config.items() if key != "tracking"})
    settings.pop("trainer.resume", None)
    sections = {
        "configuration": settings,
        "data": data,
        "code": _code(saved, tags),
        "results": {key: value for key, value in results.items() if value is not None},
    }
    return Facts(name, sections)


def comparison(runs: Sequence[Facts]) -> str:
    """A table for each section in which something differs: a row for each key, a column for each run.

    What no run has recorded is neither equal nor different: data without a digest, code without a commit.
    """
    tables, equal, unknown = [], [], []
    for section in runs[0].sections:
        keys = dict.fromkeys(key for run in runs for key in run.sections[section])
        if not all(CONTENT in run.sections[section] for run in runs):
            keys.pop(CONTENT, None)
        known = [key for key in keys if any(run.sections[section].get(key) != UNKNOWN for run in runs)]
        rows = []
        for key in known:
            values = [run.sections[section].get(key, ABSENT) for run in runs]
            if any(type(v) is not type(values[0]) or v != values[0] for v in values[1:]):
                rows.append([key, *map(_cell, values)])
        if rows:
            tables.append(_table([section, *(run.name for run in runs)], rows))
        elif section == "data" and known:
            compared, missing = (
                ", ".join(what for digest, what in COVERED.items() if (digest in known) == there)
                for there in (True, False)
            )
            equal.append(f"data ({compared}; {missing} not compared)" if missing else f"data ({compared})")
        elif len(known) < len(keys):
            unknown.append(f"{section} (not recorded)")
        else:
            equal.append(section)
    for words, sections in (("equal in all", equal), ("not known", unknown)):
        if sections:
            tables.append(f"{words}: {', '.join(sections)}\n")
    return "\n".join(tables)


def _rank(key: str) -> tuple[int, str]:
    return next((i for i, prefix in enumerate(_ORDER) if key.startswith(prefix)), len(_ORDER)), key


def _code(saved: SavedRun, tags: Mapping[str, str]) -> dict[str, Any]:
    """From summary.json where the folder is at hand, which runs without a record in MLflow have too; else from tags."""
    commit = saved.summary.get("commit", tags.get(COMMIT_TAG))
    found: dict[str, Any] = {"commit": str(commit)[:12] if commit else UNKNOWN}
    if "uncommitted" in saved.summary:
        found["uncommitted"] = saved.summary["uncommitted"]
    elif saved.recorded is not None:
        diff = saved.recorded.text("uncommitted.diff")
        found["uncommitted"] = "nothing" if diff is None else size_of_diff(diff)
    return found


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = " ".join(text.split())
    half = (WIDEST - 1) // 2
    return text if len(text) <= WIDEST else f"{text[:half]}…{text[-half:]}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines) + "\n"
