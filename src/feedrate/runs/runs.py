"""Which runs there are: their folders, what their summary.json says, and which folder a name means.

Who owns a folder is in run_folder.py; what a checkpoint holds is not looked at. Imports neither torch nor mlflow.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feedrate.config import ROOT, resolve_path
from feedrate.errors import UserError
from feedrate.runs.run_folder import RunFolder, living_owner
from feedrate.system.atomic_write import atomic_write
from feedrate.tracking.journal import SILENT_END, run_id_of

SUMMARY = "summary.json"


def read_summary(folder: Path) -> dict[str, Any]:
    """summary.json of a run folder, empty if there is none that can be read."""
    try:
        found = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Replaces summary.json, which is whole at every instant."""
    atomic_write(folder / SUMMARY, json.dumps(summary, indent=2, default=str))


def folder_named(path: str) -> Path | None:
    """The run folder that the path of a folder, or of a checkpoint in one, means; None where there is no such path."""
    named = resolve_path(path)
    if named.is_file():
        return named.parent.parent
    return named if named.is_dir() else None


def folder_of_id(run_id: str, runs: Path) -> Path | None:
    """The folder of a run of MLflow's."""
    found = all_runs(runs)
    return next((folder for folder, one in found if run_id in (one.get("run_id"), run_id_of(folder))), None)


@dataclass(frozen=True)
class Unfinished:
    """Runs that are not finished and have a checkpoint, the newest of each kind.

    Attributes:
        free: can be gone on with; None: there is none.
        used: a process is at it now; None: there is none.
        of_command: free, of the present command but with another configuration.
    """

    free: Path | None
    used: Path | None
    of_command: Path | None


def unfinished(result_id: str, command: str, runs: Path) -> Unfinished:
    """Those with this result, and those that were begun by this command, as summary.json has them."""
    found: dict[str, tuple[str, Path]] = {}
    for folder, summary in all_runs(runs):
        same = summary.get("result_id") == result_id
        if not same and _without_resume(str(summary.get("command"))) != _without_resume(command):
            continue
        if summary.get("status") != "FINISHED" and any((folder / "checkpoints").glob("last*.pt")):
            used = living_owner(folder) is not None
            if same or not used:
                kind = ("used" if used else "free") if same else "of_command"
                found[kind] = max(found.get(kind, ("", folder)), (summary["started"], folder))
    return Unfinished(*(found[kind][1] if kind in found else None for kind in ("free", "used", "of_command")))


def _without_resume(command: str) -> str:
    return " ".join(word for word in command.split(" ") if not word.lstrip("'").startswith("trainer.resume="))


def all_runs(runs: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Folders of runs with their summaries: those in `runs`, and those under outputs/."""
    found = [(folder, read_summary(folder)) for folder in _folders(runs, SUMMARY)]
    return [(folder, summary) for folder, summary in found if "started" in summary]


def mark_dead_runs(runs: Path) -> list[tuple[str, Path]]:
    """Marks runs and sweeps whose process is gone without a word as KILLED, and takes away what it left half written.

    A run that ends in order removes its lock, so only folders with a lock are looked at.

    Returns:
        MLflow's ids and the folders of those whose end the tracker may not know.
    """
    dead = []
    sweeps = {path.parent for path in (ROOT / "outputs/sweeps").glob("*/lock")}
    for folder in sorted(_folders(runs, "lock") | sweeps):
        try:
            if living_owner(folder) is not None:
                continue
            owned = RunFolder(folder)
        except (UserError, OSError):  # somebody goes on with it just now, or it is not ours to write
            continue
        try:
            tidy(folder)
            summary = read_summary(folder)
            if summary.get("status") == "RUNNING":
                summary |= {"status": "KILLED", "error": SILENT_END}
                write_summary(folder, summary)
            if summary:
                dead.append((str(summary.get("run_id") or ""), folder))
        finally:
            owned.release()
    return dead


def tidy(folder: Path) -> None:
    """Removes what a process that was killed has left half written; call as the folder's owner."""
    for left in (folder / f".{SUMMARY}", *folder.glob("checkpoints/.*")):
        with contextlib.suppress(OSError):
            left.unlink(missing_ok=True)


def _folders(runs: Path, holding: str) -> set[Path]:
    """Run folders that hold a file of that name."""
    patterns = ((runs, "*"), (ROOT / "outputs/runs", "*"), (ROOT / "outputs/sweeps", "*/*"))
    return {path.parent for root, pattern in patterns for path in root.glob(f"{pattern}/{holding}")}
