"""Where a run comes from: command, code version, and the hashes that tell whether two runs are the same.

Nothing is recorded here.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from feedrate.config import ROOT
from feedrate.tracking import without_secrets

# what cannot change a result: how batches are fetched, where things lie, what is printed
_FETCHING = {
    "num_workers", "prefetch_factor", "pin_memory", "persistent_workers", "timeout", "multiprocessing_context",
    "content_digest", "engine",
}  # fmt: skip
_READING = {"cache", "access", "verify", "stale"}
_SHOWING = {
    "log_every",
    "warmup_steps",
    "profile",
    "resume",
    "resume_changed",
    "checkpoint_every_s",
    "keep_checkpoints",
}


@dataclass(frozen=True)
class Code:
    """State of the repository: commit (40 hexadecimal digits, or an empty text outside git) and uncommitted changes."""

    commit: str
    diff: str


def code_version() -> Code:
    """The repository's commit, and its difference from it; files of code and configuration that are new count too."""
    new = _git("ls-files", "--others", "--exclude-standard", "-z", "--", "src", "conf").split("\0")
    return Code(_git("rev-parse", "HEAD").strip(), _git("diff", "HEAD") + "".join(map(_as_new, filter(None, new))))


def _as_new(name: str) -> str:
    """An untracked file as a difference shows it."""
    try:
        content = (ROOT / name).read_bytes()
        lines = content.decode().splitlines(keepends=True)
    except OSError:
        return ""
    except UnicodeDecodeError:
        return f"Binary files /dev/null and b/{name} differ ({hashlib.sha256(content).hexdigest()[:16]})\n"
    return "".join(f"{line.rstrip()}\n" for line in difflib.unified_diff([], lines, "/dev/null", f"b/{name}"))


def has_commit(commit: str) -> bool:
    """Whether a commit is one of this repository."""
    named = re.fullmatch(r"[0-9a-f]{40,64}", commit) is not None
    return named and _git("cat-file", "-t", commit).strip() == "commit"


def size_of_diff(diff: str) -> str:
    """What tells two states of uncommitted changes apart: lines, and 8 hexadecimal digits of their hash."""
    lines = sum(line.startswith(("+", "-")) and not line.startswith(("+++", "---")) for line in diff.splitlines())
    return f"{lines} lines ({hashlib.sha256(diff.encode()).hexdigest()[:8]})" if diff else "nothing"


def command_line(overrides: Sequence[str]) -> str:
    """The command that makes this run again, from the repository's root; of a sweep, this job's own."""
    return "python src/" + shlex.join([sys.argv[0].rsplit("/", 1)[-1], *map(without_secrets, overrides)])


def job_id(config: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of the configuration without paths and tracking: a sweep skips by it."""
    return _hash(_without_places(config))


def result_id(config: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of all that can change the result: resuming looks for it."""
    return _hash(deciding(config))


def deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a configuration can change the result."""
    kept = _without_places(config)
    kept["dataset"] = {k: v for k, v in kept["dataset"].items() if k not in _READING}
    kept["loader"] = {k: v for k, v in kept["loader"].items() if k not in _FETCHING}
    kept["trainer"] = {k: v for k, v in kept["trainer"].items() if k not in _SHOWING}
    return kept


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"loader": {"batch_size": 64}}` as `{"loader.batch_size": 64}`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two flat configurations, `seed was 0, is 1`: three keys, and how many more."""
    absent = "not there"
    different = [
        f"{key} was {then.get(key, absent)}, is {now.get(key, absent)}"
        for key in dict.fromkeys([*now, *then])
        if then.get(key, absent) != now.get(key, absent)
    ]
    return "; ".join(different[:3]) + (f", and {len(different) - 3} more" if len(different) > 3 else "")


def _without_places(config: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in config.items() if key not in ("tracking", "sweep")}
    kept["dataset"] = {k: v for k, v in kept["dataset"].items() if k != "root"}
    kept["trainer"] = {k: v for k, v in kept["trainer"].items() if k not in ("resume", "resume_optimizer")}
    return kept


def _hash(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
