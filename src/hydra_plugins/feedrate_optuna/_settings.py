"""The settings of a search, checked: what is tried, what is to become large or small, how often.

How a study draws from them is in _study.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from feedrate.config import Number, Positive
from feedrate.errors import UserError
from feedrate.validation import nearest, validate
from hydra_plugins.feedrate_launcher._freeze import quoted

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_WORD = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_NOT_WORDS = ("null", "true", "false", "nan", "inf")  # Hydra's grammar takes them for something else
_KNOWN = ConfigDict(extra="forbid")
Whole = Annotated[int, Field(strict=True)]


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class FloatSpace:
    """Numbers from low to high, both included; evenly by their logarithm with `log`."""

    type: Literal["float"]
    low: Number
    high: Number
    log: bool = False
    step: Number | None = None


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class IntSpace:
    """Whole numbers from low to high, both included, `step` apart."""

    type: Literal["int"]
    low: Whole
    high: Whole
    log: bool = False
    step: Positive = 1


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class CategoricalSpace:
    """One of several values, without an order."""

    type: Literal["categorical"]
    choices: Annotated[list[bool | int | float | str | None], Field(min_length=1)]


Space = FloatSpace | IntSpace | CategoricalSpace
_TYPES: dict[str, type] = {"float": FloatSpace, "int": IntSpace, "categorical": CategoricalSpace}


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class Search:
    """The keys of conf/hydra/sweeper/optuna.yaml.

    Attributes:
        space: key -> what is tried, as `spaces` reads it.
    """

    study: Annotated[str, Field(min_length=1)]
    metric: Annotated[str, Field(min_length=1)]
    direction: Literal["minimize", "maximize"]
    n_trials: Positive
    space: dict[str, Any]
    sampler: dict[str, Any] = field(default_factory=lambda: {"name": "TPESampler", "seed": 0})
    pruner: dict[str, Any] | None = None


def search(settings: Mapping[str, Any]) -> Search:
    """The settings under `hydra.sweeper`.

    Raises:
        UserError: one is missing, unknown, or not of its kind.
    """
    checked: Search = validate(Search, settings, "hydra.sweeper")
    return checked


def spaces(settings: Mapping[str, Any]) -> dict[str, Space]:
    """`hydra.sweeper.space` by whole keys, checked.

    Args:
        settings: `optimizer: {lr: RANGE}`, which the command line can change, or `optimizer.lr: RANGE`.

    Raises:
        UserError: it is empty, or a range is not one.
    """
    if not settings:
        raise UserError(
            "hydra.sweeper.space is empty: nothing to search; give a key its range, such as\n"
            "optimizer.lr: {type: float, low: 1e-4, high: 0.1, log: true}   (conf/experiment/search_digits.yaml)"
        )
    return {key: _space(key, node) for key, node in _whole_keys(settings).items()}


def distribution(key: str, space: Space) -> BaseDistribution:
    """The same as optuna has it.

    Raises:
        UserError: optuna refuses it.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    try:
        if isinstance(space, CategoricalSpace):
            return CategoricalDistribution(space.choices)
        if isinstance(space, IntSpace):
            return IntDistribution(space.low, space.high, log=space.log, step=space.step)
        return FloatDistribution(space.low, space.high, log=space.log, step=space.step)
    except ValueError as error:
        raise UserError(f"hydra.sweeper.space.{key}: {error}") from error


def ends(space: Space) -> list[Any]:
    """The values at which a wrong range shows: both ends, or every choice."""
    return list(space.choices) if isinstance(space, CategoricalSpace) else [space.low, space.high]


def in_words(space: Space) -> str:
    """`0.0001 to 0.1, log`; `16, 32, 64`."""
    if isinstance(space, CategoricalSpace):
        return ", ".join(map(as_text, space.choices))
    step = f", step {space.step:g}" if space.step not in (None, 1) else ""
    return f"{space.low:g} to {space.high:g}{', log' if space.log else step}"


def override(key: str, value: Any) -> str:
    """A value as an override of Hydra's."""
    if isinstance(value, str) and (not _WORD.fullmatch(value) or value.lower() in _NOT_WORDS):
        return f"{key}={quoted(value)}"
    return f"{key}={as_text(value)}"


def as_text(value: Any) -> str:
    """As YAML writes it."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)


def _whole_keys(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, node in nested.items():
        group = isinstance(node, Mapping) and any(isinstance(inner, Mapping) for inner in node.values())
        found |= _whole_keys(node, f"{prefix}{key}.") if group else {f"{prefix}{key}": node}
    return found


def _space(key: str, node: Any) -> Space:
    where = f"hydra.sweeper.space.{key}"
    if not isinstance(node, Mapping):
        raise UserError(f"{where}={node}: must be a mapping such as {{type: float, low: 1e-4, high: 0.1, log: true}}")
    kind = node.get("type")
    if kind not in _TYPES:
        close = nearest(str(kind), list(_TYPES))
        raise UserError(f"{where}.type={kind}: must be float, int or categorical{close}")
    found: Space = validate(_TYPES[kind], node, where)
    if isinstance(found, CategoricalSpace):
        return found
    if not found.low < found.high:
        raise UserError(f"{where}: low={found.low} must be less than high={found.high}")
    if found.log and found.low <= 0:
        raise UserError(f"{where}: low={found.low} must be more than 0 with log: true")
    if found.log and found.step not in (None, 1):
        raise UserError(f"{where}: step={found.step} and log: true exclude each other")
    if found.step is not None and found.step <= 0:
        raise UserError(f"{where}: step={found.step} must be more than 0")
    return found
