"""Compares runs: a table of what differs in configuration, data, code version and results; equal keys are left out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from feedrate.runs.saved import SavedRun
from feedrate.system.text import flatten, table
from feedrate.tracking.tracker import COMMIT_TAG

ABSENT = "-"
DIGESTS = ("data digest", "order digest", "content digest")
WIDEST = 44  # characters of a cell; a longer value is shortened in its middle
_LEFT_OUT = ("system/", "best/")  # readings that are never equal; figures that have rows of their own
_ORDER = ("test/", "validation/", "train/")  # of results; the others follow

Facts = Mapping[str, Mapping[str, Any]]  # section (configuration, data, code, results) -> key -> value


def facts(saved: SavedRun) -> Facts:
    """The facts of a run, from MLflow where it was recorded, else from its folder; what was not recorded is missing."""
    summary, recorded = saved.summary, saved.recorded
    tags: Mapping[str, str] = recorded.tags if recorded is not None else {}
    metrics = recorded.metrics if recorded is not None else summary.get("metrics") or {}
    best = summary.get("best") or {k.replace("best/", "validation/"): v for k, v in metrics.items() if "best/" in k}
    settings = flatten({key: value for key, value in saved.config.items() if key != "tracking"})
    settings.pop("trainer.resume", None)
    sections: dict[str, dict[str, Any]] = {
        "configuration": settings,
        "data": {key: summary.get(key.replace(" ", "_")) for key in DIGESTS},
        "code": {
            "commit": summary.get("commit") or tags.get(COMMIT_TAG),
            "uncommitted": summary.get("uncommitted"),
        },
        "results": {
            "status": recorded.status if recorded is not None else summary.get("status"),
            "best epoch": int(summary.get("best_epoch") or metrics.get("best/epoch", 0)) or None,
            **{f"best {k}": best[k] for k in sorted(best) if k.startswith("validation/") and k != "validation/epoch"},
            **{key: metrics[key] for key in sorted(metrics, key=_rank) if not key.startswith(_LEFT_OUT)},
            "error": tags.get("feedrate.error", summary.get("error")),
        },
    }
    for section in ("data", "code", "results"):
        sections[section] = {key: value for key, value in sections[section].items() if value not in (None, "")}
    return sections


def comparison(runs: Mapping[str, Facts]) -> str:
    """A table for each section in which something differs: a row for each key, a column for each run, by its name.

    At the end the sections, and the keys of data and code, that are equal in all runs.
    """
    tables, equal = [], []
    for section in next(iter(runs.values())):
        rows = []
        for key in dict.fromkeys(key for run in runs.values() for key in run[section]):
            values = [run[section].get(key, ABSENT) for run in runs.values()]
            if any(type(v) is not type(values[0]) or v != values[0] for v in values[1:]):
                rows.append([key, *map(_cell, values)])
            elif section in ("data", "code"):
                equal.append(key)
        if rows:
            tables.append(table([section, *runs], rows, left=len(runs) + 1) + "\n")
        elif section in ("configuration", "results"):
            equal.append(section)
    return "\n".join([*tables, f"equal in all: {', '.join(equal) or 'nothing'}\n"])


def _rank(key: str) -> tuple[int, str]:
    return next((i for i, prefix in enumerate(_ORDER) if key.startswith(prefix)), len(_ORDER)), key


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = " ".join(text.split())
    half = (WIDEST - 1) // 2
    return text if len(text) <= WIDEST else f"{text[:half]}…{text[-half:]}"
