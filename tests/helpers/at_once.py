"""Commands that have nothing to do with each other, side by side: a test waits for half as long on two cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Key, Result = TypeVar("Key"), TypeVar("Result")


def at_once(calls: Mapping[Key, Callable[[], Result]]) -> dict[Key, Result]:
    """What each of these calls returns; each starts a process and waits for it. No more at a time than there are cores.

    Raises:
        Exception: that of the first call, in their order, that raised one.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(calls, pool.map(lambda call: call(), calls.values()), strict=True))
