"""What differs between runs: configuration, data, code version and results, as rows of plain text.

What is equal in all runs is left out; nothing is built and nothing of a configuration is imported.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from feedrate.runs.provenance import flat, size_of_diff
from feedrate.runs.restore import SavedRun
from feedrate.tracking.tracker import COMMIT_TAG

ABSENT = "-"
CONTENT = "content digest"  # only of runs with loader.content_digest=true
COVERED = {"data digest": "IDs, labels", "order digest": "order", CONTENT: "content"}
UNKNOWN = "not recorded"
WIDEST = 44  # characters of a cell; a longer value is shortened in its middle
_PLACES = {"trainer.resume"}  # like all of tracking: where a run lies and how it was started says nothing about it
_LEFT_OUT = ("system/", "best/")  # readings that are never equal; figures that have rows of their own
_ORDER = ("test/", "validation/", "train/")  # of results; the others follow


@dataclass(frozen=True)
class Facts:
    """What is compared of one run, by section and by key.

    Attributes:
        name: column title.
        sections: configuration, data, code, results.
    """

    name: str
    sections: Mapping[str, Mapping[str, Any]]


def facts(name: str, saved: SavedRun) -> Facts:
    """What is known of a run, from MLflow where it has it, else from its folder."""
    tags = saved.recorded.tags if saved.recorded is not None else {}
    summary = saved.summary
    results: dict[str, Any] = {"status": saved.recorded.status if saved.recorded is not None else summary.get("status")}
    metrics = saved.recorded.metrics if saved.recorded is not None else summary.get("metrics") or {}
    best = summary.get("best") or {
        key.replace("best/", "validation/"): value for key, value in metrics.items() if key.startswith("best/")
    }
    epoch = summary.get("best_epoch", metrics.get("best/epoch"))
    results |= {"best epoch": None if epoch is None else int(epoch)}
    results |= {
        f"best {key}": best[key] for key in sorted(best) if key.startswith("validation/") and key != "validation/epoch"
    }
    results |= {key: metrics[key] for key in sorted(metrics, key=_rank) if not key.startswith(_LEFT_OUT)}
    results["error"] = tags.get("feedrate.error", summary.get("error"))
    order, digest, content = (summary.get(f"{name}_digest") for name in ("order", "data", "content"))
    return Facts(
        name,
        {
            "configuration": _settings(saved.config),
            "data": {
                "data digest": _short(digest),
                "order digest": _short(order),
                **({CONTENT: _short(content)} if content else {}),
            },
            "code": _code(saved, tags),
            "results": {key: value for key, value in results.items() if value is not None},
        },
    )


def comparison(runs: Sequence[Facts]) -> str:
    """A table for each section in which something differs: a row for each key, a column for each run.

    What no run has recorded is neither equal nor different: data without a digest, code without a commit.
    """
    parts, equal, unknown = [], [], []
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
            parts.append(_table([section, *(run.name for run in runs)], rows))
        elif section == "data" and known:
            equal.append(f"data ({_covered(known)})")
        elif len(known) < len(keys):
            unknown.append(f"{section} (not recorded)")
        else:
            equal.append(section)
    for said, sections in (("equal in all", equal), ("not known", unknown)):
        if sections:
            parts.append(f"{said}: {', '.join(sections)}\n")
    return "\n".join(parts)


def _covered(digests: Collection[str]) -> str:
    """What is equal if these digests are."""
    compared = ", ".join(what for digest, what in COVERED.items() if digest in digests)
    missing = ", ".join(what for digest, what in COVERED.items() if digest not in digests)
    return f"{compared}; {missing} not compared" if missing else compared


def _rank(key: str) -> tuple[int, str]:
    return next((i for i, prefix in enumerate(_ORDER) if key.startswith(prefix)), len(_ORDER)), key


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    found = flat({key: value for key, value in config.items() if key != "tracking"})
    return {key: value for key, value in found.items() if key not in _PLACES}


def _code(saved: SavedRun, tags: Mapping[str, str]) -> dict[str, Any]:
    """From summary.json where the folder is at hand: it is what runs without a record in MLflow have too."""
    commit = saved.summary.get("commit", tags.get(COMMIT_TAG))
    found: dict[str, Any] = {"commit": str(commit)[:12] if commit else UNKNOWN}
    if "uncommitted" in saved.summary:
        found["uncommitted"] = saved.summary["uncommitted"]
    elif saved.recorded is not None:
        diff = saved.recorded.text("uncommitted.diff")
        found["uncommitted"] = "nothing" if diff is None else size_of_diff(diff)
    return found


def _short(digest: object) -> str:
    return str(digest)[:12] if digest else UNKNOWN


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
