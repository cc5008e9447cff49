"""Where a run comes from: command, code version, and the hashes that tell whether two runs are the same.

Nothing is recorded here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import select
import shlex
import stat
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feedrate.config import ROOT
from feedrate.tracking import without_secrets

SECONDS = 5.0  # for all questions to git together
BYTES = 500_000  # of a difference; the rest is left out
FILES, HASHED_BYTES = 100, 250_000  # untracked files that are listed; larger ones are not read
CUT, UNTRACKED = f"(cut after {BYTES:,} bytes)", "untracked: "

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

# keys that older configurations lack, and what that meant
_OFF: dict[str, dict[str, Any]] = {
    "trainer": {"channels_last": False, "matmul_precision": "highest", "deterministic": False},
    "optimizer": {"fused": "auto"},
}


@dataclass(frozen=True)
class Code:
    """State of the repository.

    Attributes:
        commit: 40 hexadecimal digits; empty outside git.
        diff: uncommitted changes, and a line for each new file of code and configuration; empty where there are none,
            None where that is not known: outside git, or when it takes too long.
    """

    commit: str
    diff: str | None


def code_version() -> Code:
    """The repository's commit and its difference from it, found within SECONDS and cut at BYTES; never raises."""
    end = time.monotonic() + SECONDS
    head = _git(end, "rev-parse", "HEAD", "HEAD:./src")  # the latter fails in a repository around this one
    if head is None:
        return Code("", None)
    commit = head.split()[0].decode()
    # without the programs and settings that a user's git may run for people
    diff = _git(end, "diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv", "--ignore-submodules=untracked")
    new = _git(end, "ls-files", "--others", "--exclude-standard", "-z", "--", "src", "conf")
    if diff is None or new is None:
        return Code(commit, None)
    if len(diff) > BYTES:
        diff = diff[:BYTES].rpartition(b"\n")[0] + f"\n{CUT}\n".encode()
    return Code(commit, diff.decode(errors="backslashreplace") + _listed(new))


def _listed(names: bytes) -> str:
    """New files, a line for each, with what tells their states apart; their content is not copied."""
    found = [name for name in names.split(b"\0") if name]
    lines = [f"{UNTRACKED}{_shown(name)}\n" for name in found[:FILES]]
    return "".join(lines) + (f"and {len(found) - FILES} untracked files more\n" if len(found) > FILES else "")


def _shown(name: bytes) -> str:
    path, text = Path(ROOT, os.fsdecode(name)), name.decode(errors="backslashreplace").replace("\n", "\\n")
    try:
        state = path.lstat()
        if stat.S_ISREG(state.st_mode) and state.st_size <= HASHED_BYTES:
            return f"{text}  {state.st_size:,} bytes, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
        return f"{text}  {state.st_size:,} bytes, changed at {state.st_mtime_ns / 1e9:.6f}"
    except OSError:
        return text


def has_commit(commit: str) -> bool:
    """Whether a commit is one of this repository."""
    if re.fullmatch(r"[0-9a-f]{40,64}", commit) is None:
        return False
    kind = _git(time.monotonic() + SECONDS, "cat-file", "-t", commit)
    return kind is not None and kind.strip() == b"commit"


def size_of_diff(diff: str | None) -> str:
    """What tells two states of uncommitted changes apart: lines, new files, and 8 hexadecimal digits of their hash."""
    if not diff:
        return "nothing" if diff == "" else "not recorded"
    lines = sum(line.startswith(("+", "-")) and not line.startswith(("+++", "---")) for line in diff.splitlines())
    new = sum(line.startswith(UNTRACKED) for line in diff.splitlines())
    files = f", {new} untracked file{'s'[: new != 1]}" if new else ""
    return f"{'over ' if CUT in diff else ''}{lines} lines{files} ({hashlib.sha256(diff.encode()).hexdigest()[:8]})"


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
    for group, off in _OFF.items():
        if isinstance(kept.get(group), Mapping):
            kept[group] = {k: v for k, v in kept[group].items() if k not in off or v != off[k]}
    kept["dataset"] = {k: v for k, v in kept["dataset"].items() if k != "root"}
    kept["trainer"] = {k: v for k, v in kept["trainer"].items() if k not in ("resume", "resume_optimizer")}
    return kept


def _hash(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _git(end: float, *arguments: str) -> bytes | None:
    """What git prints, or its beginning; None where it fails, is not there, or has not ended at the instant `end`."""
    elsewhere = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX"}  # set within git's hooks
    own = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    try:
        process = subprocess.Popen(
            ["git", "-c", "core.fsmonitor=false", *arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={key: value for key, value in os.environ.items() if key not in elsewhere} | own,
        )
    except OSError:
        return None
    assert process.stdout is not None
    found = b""
    with process.stdout as output:
        try:
            while select.select([output], [], [], max(0.0, end - time.monotonic()))[0]:
                part = os.read(output.fileno(), 65536)
                if not part:
                    return found if process.wait(max(0.1, end - time.monotonic())) == 0 else None
                found += part
                if len(found) > BYTES:
                    return found
            return None
        except subprocess.TimeoutExpired:
            return None
        finally:
            process.kill()
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
