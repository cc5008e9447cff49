"""A short, readable name for a run, from its configuration and overrides; it need not be unique."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from feedrate.system.secrets import looks_secret

MAX_CHARACTERS = 60

_NAMED = {"model", "dataset", "loader.num_workers", "loader.batch_size"}  # each has its own part of the name
_LEFT_OUT = ("~", "hydra.", "hydra/", "tracking", "debug", "sweep.")
_NUMBER = re.compile(r"[+-]?[\d_]*\.?\d+(e[+-]?\d+)?", re.IGNORECASE)


def run_name(config: Mapping[str, Any], overrides: Sequence[str] = ()) -> str:
    """For example `mlp-digits-w2-b64-lr0.01-seed3`, cut after 60 characters.

    Args:
        config: the whole configuration. `model` and `dataset` are option names, or mappings with `name` or
            `_target_`.
        overrides: Hydra's task overrides (`optimizer.lr=0.01`).
    """
    chosen = dict(part.lstrip("+").split("=", 1) for part in overrides if "=" in part)
    loader = config.get("loader") or {}
    parts = [chosen.get(group) or _option(config.get(group)) for group in ("model", "dataset")]
    parts += [f"{short}{loader[key]}" for short, key in (("w", "num_workers"), ("b", "batch_size")) if key in loader]
    for key, value in chosen.items():
        if not (key in _NAMED or key.startswith(_LEFT_OUT) or looks_secret(key)):
            parts.append(_short(key, value))
    name = "-".join(re.sub(r"[^\w.+-]+", "_", part).strip("_-") for part in parts if part)
    return name[:MAX_CHARACTERS] or "run"


def _short(key: str, value: str) -> str:
    """`optimizer.lr=0.01` is lr0.01, `loader=torch` is torch, `loader.pin_memory=false` is pin_memory_false."""
    word, value = key.rpartition(".")[2].removeprefix("max_"), value.rpartition("/")[2]
    if _NUMBER.fullmatch(value):
        return word + value
    return f"{word}_{value}" if "." in key else value


def _option(group: object) -> str:
    if isinstance(group, Mapping):
        return str(group.get("name") or str(group.get("_target_", "")).rpartition(".")[2].lower())
    return str(group or "")
