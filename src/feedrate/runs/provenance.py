"""Where a run comes from: command, code version, and the hashes by which runs of the same configuration are found."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import stat
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from feedrate.config import ROOT
from feedrate.system.secrets import without_secrets

SECONDS = 5.0  # for all calls of git together
BYTES = 500_000  # of a diff that are kept
FILES, HASHED_BYTES = 100, 250_000  # untracked files that are listed, and up to which size they are hashed
CUT, UNTRACKED = f"(cut after {BYTES:,} bytes)", "untracked: "

# keys that cannot change a result: how batches are fetched, where data lies, what is printed
_FETCHING = {
    "num_workers", "prefetch_factor", "pin_memory", "persistent_workers", "timeout", "multiprocessing_context",
    "content_digest", "engine",
}  # fmt: skip
_READING = {"cache", "access", "verify", "stale"}
_SHOWING = {
    "log_every", "warmup_steps", "profile", "resume", "resume_changed", "checkpoint_every_s", "keep_checkpoints",
}  # fmt: skip

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
        diff: uncommitted changes, and a line for each untracked file of src/ and conf/; None where unknown: outside
            git, or when git takes too long.
    """

    commit: str
    diff: str | None


def code_version() -> Code:
    """The repository's commit and uncommitted changes, within SECONDS; never raises."""
    end = time.monotonic() + SECONDS
    head = _git(end, "rev-parse", "HEAD", "HEAD:./src")  # the latter fails in a repository around this one
    if head is None:
        return Code("", None)
    commit = head.split()[0].decode()
    # without external programs and settings of the user's git
    diff = _git(end, "diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv", "--ignore-submodules=untracked")
    new = _git(end, "ls-files", "--others", "--exclude-standard", "-z", "--", "src", "conf")
    if diff is None or new is None:
        return Code(commit, None)
    if len(diff) > BYTES:
        diff = diff[:BYTES].rpartition(b"\n")[0] + f"\n{CUT}\n".encode()
    names = [name for name in new.split(b"\0") if name]
    lines = [f"{UNTRACKED}{_file_state(name)}\n" for name in names[:FILES]]
    if len(names) > FILES:
        lines.append(f"and {len(names) - FILES} untracked files more\n")
    return Code(commit, diff.decode(errors="backslashreplace") + "".join(lines))


def _file_state(name: bytes) -> str:
    """Name, size and hash (or time) of an untracked file; its content is not copied."""
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
    """Uncommitted changes in short: lines, untracked files, and 8 hexadecimal digits of their hash."""
    if not diff:
        return "nothing" if diff == "" else "not recorded"
    lines = sum(line.startswith(("+", "-")) and not line.startswith(("+++", "---")) for line in diff.splitlines())
    new = sum(line.startswith(UNTRACKED) for line in diff.splitlines())
    files = f", {new} untracked file{'s'[: new != 1]}" if new else ""
    return f"{'over ' if CUT in diff else ''}{lines} lines{files} ({hashlib.sha256(diff.encode()).hexdigest()[:8]})"


def _git(end: float, *arguments: str) -> bytes | None:
    """Output of git; None where it fails, is missing, or has not ended at the instant `end`."""
    elsewhere = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX"}  # set within git's hooks
    own = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    try:
        return subprocess.run(
            ["git", "-c", "core.fsmonitor=false", *arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={key: value for key, value in os.environ.items() if key not in elsewhere} | own,
            timeout=max(0.1, end - time.monotonic()),
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None


@dataclass(frozen=True)
class Origin:
    """What a run is started from.

    Attributes:
        config: the resolved configuration.
        choices: option of each group, such as {'dataset': 'digits'}.
        command: starts this run again; without secrets.
        started: time of its start, ISO 8601.
    """

    config: Mapping[str, Any]
    choices: Mapping[str, str]
    command: str
    started: str
    code: Code = field(default_factory=code_version)

    def summary(self) -> dict[str, Any]:
        """What summary.json says from the start, so that a killed run can be found and resumed."""
        return {
            "status": "RUNNING",
            "command": self.command,
            "started": self.started,
            "result_id": result_id(self.config),
            "job_id": job_id(self.config),
            "run_id": None,
            "commit": self.code.commit,
            "uncommitted": size_of_diff(self.code.diff),
        }


def command_line(overrides: Sequence[str]) -> str:
    """The command that starts this run, or this job of a sweep, again from the repository's root."""
    return "python src/" + shlex.join([sys.argv[0].rsplit("/", 1)[-1], *map(without_secrets, overrides)])


def job_id(config: Mapping[str, Any]) -> str:
    """Hash of the configuration without paths and tracking, 16 hexadecimal digits; a sweep skips by it."""
    return _hash(_without_places(config))


def result_id(config: Mapping[str, Any]) -> str:
    """Hash of all settings that can change the result, 16 hexadecimal digits; `trainer.resume=auto` looks for it."""
    return _hash(deciding(config))


def deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that can change the result."""
    kept = _without_places(config)
    kept["dataset"] = {k: v for k, v in kept["dataset"].items() if k not in _READING}
    kept["loader"] = {k: v for k, v in kept["loader"].items() if k not in _FETCHING}
    kept["trainer"] = {k: v for k, v in kept["trainer"].items() if k not in _SHOWING}
    return kept


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
