"""Where a run comes from: command, code version, and the hashes by which runs of the same configuration are found."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from feedrate.config import ROOT
from feedrate.system.secrets import without_secrets

SECONDS = 5.0  # for a call of git
BYTES = 500_000  # of a diff that are kept
FILES = 100  # untracked files that are listed
CUT = f"(cut after {BYTES:,} bytes)"

# keys that cannot change a result: how batches are fetched, where data lies, what is printed
_FETCHING = {
    "num_workers", "prefetch_factor", "pin_memory", "persistent_workers", "timeout", "multiprocessing_context",
    "content_digest", "engine",
}  # fmt: skip
_READING = {"cache", "access", "verify", "stale"}
_SHOWING = {
    "log_every", "warmup_steps", "profile", "resume", "resume_changed", "checkpoint_every_s", "keep_checkpoints",
}  # fmt: skip


@dataclass(frozen=True)
class Code:
    """State of the repository."""

    commit: str  # 40 hexadecimal digits; empty outside git
    diff: str | None  # uncommitted changes, and a line for each untracked file of src/ and conf/; None where unknown


def code_version() -> Code:
    """The repository's commit and uncommitted changes; never raises."""
    try:
        commit = _git("rev-parse", "HEAD", "HEAD:./src").split()[0].decode()  # fails in a repository around this one
    except (OSError, subprocess.SubprocessError):
        return Code("", None)
    try:
        # without external programs and settings of the user's git
        diff = _git("diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv", "--ignore-submodules=untracked")
        names = _git("ls-files", "--others", "--exclude-standard", "-z", "--", "src", "conf").split(b"\0")[:-1]
        hashes = _git("hash-object", "--", *names[:FILES]).split() if names else []
    except (OSError, subprocess.SubprocessError):
        return Code(commit, None)
    if len(diff) > BYTES:
        diff = diff[:BYTES].rpartition(b"\n")[0] + f"\n{CUT}\n".encode()
    lines = [b"untracked: %s  git hash %s\n" % pair for pair in zip(names, hashes, strict=False)]
    if len(names) > FILES:
        lines.append(b"and %d untracked files more\n" % (len(names) - FILES))
    return Code(commit, b"".join([diff, *lines]).decode(errors="backslashreplace"))


def has_commit(commit: str) -> bool:
    """Whether a commit, in hexadecimal digits, is one of this repository."""
    try:
        whole = len(commit) >= 40 and set(commit) <= set("0123456789abcdef")
        return whole and bool(_git("rev-parse", "--verify", f"{commit}^{{commit}}"))
    except (OSError, subprocess.SubprocessError):
        return False


def size_of_diff(diff: str | None) -> str:
    """Uncommitted changes in short: lines, and 8 hexadecimal digits of their hash."""
    if not diff:
        return "nothing" if diff == "" else "not recorded"
    over = "over " if CUT in diff else ""
    return f"{over}{diff.count(chr(10))} lines of difference ({hashlib.sha256(diff.encode()).hexdigest()[:8]})"


def _git(*arguments: str | bytes) -> bytes:
    """Output of git in this repository, also within another one's hook."""
    elsewhere = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX"}
    env = {key: value for key, value in os.environ.items() if key not in elsewhere}
    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, env=env, timeout=SECONDS, check=True
    )
    return done.stdout


@dataclass(frozen=True)
class Origin:
    """What a run is started from."""

    config: Mapping[str, Any]  # resolved
    choices: Mapping[str, str]  # option of each group, such as {'dataset': 'digits'}
    command: str  # starts this run again; without secrets
    started: str  # ISO 8601
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
    kept["dataset"] = {k: v for k, v in kept["dataset"].items() if k != "root"}
    kept["trainer"] = {k: v for k, v in kept["trainer"].items() if k not in ("resume", "resume_optimizer")}
    return kept


def _hash(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:16]
