"""A short, readable name for a run, from its configuration and overrides; it need not be unique."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from feedrate.system.secrets import looks_secret

MAX_CHARACTERS = 60

_NAMED = {"model", "dataset", "loader.num_workers", "loader.batch_size"}  # they have a part of their own
_LEFT_OUT = ("hydra.", "hydra/", "tracking", "debug", "sweep.")
_NUMBER = re.compile(r"^[+-]?(\d+(_\d+)*\.?\d*|\.\d+)([eE][+-]?\d+)?$")


def run_name(config: Mapping[str, Any], overrides: Sequence[str] = ()) -> str:
    """For example `mlp-digits-w2-b64-lr0.01-seed3`, at most 60 characters.

    Args:
        config: the whole configuration. `model` and `dataset` are option names, or mappings with `name` or
            `_target_`.
        overrides: Hydra's task overrides (`optimizer.lr=0.01`). Those that do not fit are counted: `+2`.
    """
    chosen = dict(part.lstrip("+").split("=", 1) for part in overrides if "=" in part)
    loader = config.get("loader")
    loader = loader if isinstance(loader, Mapping) else {}
    parts = [chosen.get(group) or _option(config.get(group)) for group in ("model", "dataset")]
    parts += [f"{short}{loader[key]}" for short, key in (("w", "num_workers"), ("b", "batch_size")) if key in loader]
    name = "-".join(_plain(part) for part in parts if part)
    rest = [_plain(_short(part)) for part in overrides if not _is_left_out(part)]
    for position, part in enumerate(rest):
        left = len(rest) - position - 1
        room = MAX_CHARACTERS - (len(f"+{left}") if left else 0)
        if len(name) + 1 + len(part) > room:
            missing = f"+{left + 1}"
            return name[: MAX_CHARACTERS - len(missing)] + missing
        name = f"{name}-{part}" if name else part
    return name[:MAX_CHARACTERS] or "run"


def _is_left_out(override: str) -> bool:
    key = override.lstrip("+~").partition("=")[0]
    return key in _NAMED or key.startswith(_LEFT_OUT) or looks_secret(key)


def _short(override: str) -> str:
    """`optimizer.lr=0.01` is lr0.01, `loader=torch` is torch, `loader.pin_memory=false` is no_pin_memory."""
    if override.startswith("~"):
        return "no_" + override[1:].partition("=")[0].rpartition(".")[2]
    key, _, value = override.lstrip("+").partition("=")
    word = key.rpartition(".")[2].removeprefix("max_")
    if value.lower() in ("true", "false"):
        return word if value.lower() == "true" else f"no_{word}"
    if _NUMBER.match(value):
        return word + value
    if "." not in key and key != "seed":
        return value.rpartition("/")[2]
    return f"{word}_{value.rpartition('/')[2]}"


def _option(group: object) -> str:
    if isinstance(group, Mapping):
        return str(group.get("name") or str(group.get("_target_", "")).rpartition(".")[2].lower())
    return str(group) if group else ""


def _plain(part: object) -> str:
    return re.sub(r"[^\w.+-]+", "_", str(part)).strip("_-")[:MAX_CHARACTERS]
