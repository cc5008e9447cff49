"""Where more no longer helps: of settings that were tried, the cheapest that is as good as the best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

AS_GOOD = 1.03  # a rate that is lower by less is as good
AS_GOOD_PCT = round(100 * (AS_GOOD - 1))


class _Ordered(Protocol):
    def __lt__(self, other: Any, /) -> bool: ...


_Setting = TypeVar("_Setting", bound=_Ordered)


def knee(rates: Mapping[_Setting, float]) -> _Setting:
    """The cheapest setting whose rate is as good as the highest.

    Args:
        rates: at least one; the settings are ordered by what they cost.
    """
    best = max(rates.values())
    return min(setting for setting, rate in rates.items() if rate * AS_GOOD >= best)
