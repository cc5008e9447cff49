"""Which loaders are measured: each is the command's configuration with some overrides of its own."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from feedrate.config import check_bench
from feedrate.errors import UserError
from feedrate.tuning.bench import Entry


def entries_of(config: Mapping[str, Any], typed: Sequence[str], compare: Sequence[str]) -> list[Entry]:
    """One entry for each text of overrides in `compare`; without any, one of the configuration itself.

    Args:
        config: resolved.
        typed: the command's own overrides.

    Raises:
        UserError: an override does not exist, or concerns more than dataset, loader and seed; two loaders are the same.
    """
    from hydra import compose
    from omegaconf import open_dict

    from feedrate.cli.launch import plain

    if not compare:
        own = [text for text in typed if text.startswith("loader")]
        return [Entry(" ".join(own) or "the loader's defaults", config)]
    found = []
    kept = [text for text in typed if not text.startswith(("bench.", "hydra"))]
    for text in compare:
        try:
            overrides = shlex.split(text)
        except ValueError as error:
            said = f"bench.compare: {text}: cannot be read ({error}); close the quote, or leave it out"
            raise UserError(said) from error
        for override in overrides:
            if override.partition("=")[0].partition(".")[0] not in ("dataset", "loader", "seed"):
                raise UserError(f"bench.compare: {override}: only settings of dataset, loader and seed can be compared")
        composed = compose("bench", overrides=[*kept, *overrides], return_hydra_config=True)
        with open_dict(composed):
            job = composed.pop("hydra")
        resolved = plain(composed, job=job)
        check_bench(resolved)
        found.append(Entry(text.strip() or "as configured", resolved))
    if len({entry.name for entry in found}) < len(found):
        raise UserError("bench.compare: two of the loaders are the same; give each once")
    return found
