"""Where more no longer helps: of settings that were tried, the cheapest that is as good as the best."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

AS_GOOD = 1.03  # a rate that is lower by less is as good
AS_GOOD_PCT = round(100 * (AS_GOOD - 1))


_Setting = TypeVar("_Setting")


def knee(rates: Mapping[_Setting, float], cost: Callable[[_Setting], Any]) -> _Setting:
    """The cheapest setting whose rate is as good as the highest.

    Args:
        rates: at least one.
        cost: of a setting, to be compared.
    """
    best = max(rates.values())
    return min((setting for setting, rate in rates.items() if rate * AS_GOOD >= best), key=cost)
