"""Which engine loads: inline, thread or process; how `auto` picks one by loading the first batches of an epoch.

What an engine does is workers.py and threads.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import DataLoader

from feedrate.errors import UserError
from feedrate.loader.fetch import Samples
from feedrate.loader.order import Plan
from feedrate.loader.tickets import Receipt

NAMES = ("auto", "inline", "thread", "process")


@dataclass(frozen=True)
class Choice:
    """An engine, why, and the first batches of the plan, which were made to find out."""

    engine: str
    reason: str = ""
    made: list[tuple[Any, Receipt]] = field(default_factory=list)


def checked(engine: str, settings: DataLoader[Any]) -> str:
    if engine not in NAMES:
        raise UserError(f"loader.engine={engine}: must be one of {', '.join(NAMES)}")
    return "inline" if settings.num_workers == 0 else engine


def choose(samples: Samples, plan: Plan, settings: Any) -> Choice:
    return Choice("process" if settings.engine == "auto" else settings.engine)
