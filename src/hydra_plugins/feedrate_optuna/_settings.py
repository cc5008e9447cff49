"""The settings of a search, checked: the metric, the number of trials, and the range of each key."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from feedrate.config import Positive
from feedrate.errors import UserError
from feedrate.trainer.pruning import build
from feedrate.validation import nearest, validate

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_WORD = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_NOT_WORDS = ("null", "true", "false", "nan", "inf")  # Hydra's grammar reads them as other values
NO_PRUNER = {"name": "NopPruner"}
EXAMPLE = "{type: float, low: 1e-4, high: 0.1, log: true}"


@dataclass(config=ConfigDict(extra="forbid"), frozen=True, kw_only=True)
class Search:
    """The keys of conf/hydra/sweeper/optuna.yaml."""

    study: Annotated[str, Field(min_length=1)]
    metric: Annotated[str, Field(min_length=1)]
    direction: Literal["minimize", "maximize"]
    n_trials: Positive
    space: dict[str, Any]
    sampler: dict[str, Any] = field(default_factory=lambda: {"name": "TPESampler", "seed": 0})
    pruner: dict[str, Any] | None = None


def checked(settings: Mapping[str, Any]) -> tuple[Search, dict[str, BaseDistribution]]:
    """The settings under hydra.sweeper, and the ranges in them.

    Raises:
        UserError: a setting is missing, unknown or of a wrong type, or optuna refuses sampler or pruner.
    """
    found: Search = validate(Search, settings, "hydra.sweeper")
    build("samplers", found.sampler)
    build("pruners", found.pruner or NO_PRUNER)
    return found, ranges(found.space)


def ranges(space: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    """`hydra.sweeper.space` by whole keys, such as `optimizer.lr`.

    Args:
        space: `optimizer: {lr: RANGE}`, which the command line can change, or `optimizer.lr: RANGE`.

    Raises:
        UserError: it is empty, or a range is wrong.
    """
    if not space:
        raise UserError(
            f"hydra.sweeper.space is empty: give a key its range, such as\n"
            f"optimizer.lr: {EXAMPLE}   (conf/experiment/search_digits.yaml)"
        )
    return {key: _range(f"hydra.sweeper.space.{key}", node) for key, node in _whole_keys(space).items()}


def _whole_keys(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, node in nested.items():
        is_group = isinstance(node, Mapping) and any(isinstance(inner, Mapping) for inner in node.values())
        found |= _whole_keys(node, f"{prefix}{key}.") if is_group else {f"{prefix}{key}": node}
    return found


def _range(where: str, node: Any) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(node, Mapping):
        raise UserError(f"{where}={node}: must be a mapping such as {EXAMPLE}")
    values = dict(node)
    kind = values.pop("type", None)
    kinds = {"float": FloatDistribution, "int": IntDistribution, "categorical": CategoricalDistribution}
    if kind not in kinds:
        raise UserError(f"{where}.type={kind}: must be float, int or categorical{nearest(str(kind), list(kinds))}")
    for key in {"low", "high", "step"} & values.keys():
        if not (isinstance(values[key], int if kind == "int" else (int, float)) and math.isfinite(values[key])):
            rule = "a whole number" if kind == "int" else "a finite number"
            raise UserError(f"{where}.{key}={values[key]}: must be {rule}")
    try:
        found: BaseDistribution = kinds[kind](**values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}; a range is for example {EXAMPLE}") from error
    if found.single() and kind != "categorical":
        raise UserError(f"{where}: low={values['low']} must be less than high={values['high']}")
    return found


def ends(space: Any) -> list[Any]:
    """Both ends of a range, or every choice: the values at which a wrong range shows."""
    return list(getattr(space, "choices", ())) or [space.low, space.high]


def in_words(space: Any) -> str:
    """`0.0001 to 0.1, log`; `16, 32, 64`."""
    if hasattr(space, "choices"):
        return ", ".join(map(as_text, space.choices))
    step = f", step {space.step:g}" if space.step not in (None, 1) else ""
    return f"{space.low:g} to {space.high:g}{', log' if space.log else step}"


def override(key: str, value: Any) -> str:
    """A value as an override of Hydra's."""
    if isinstance(value, str) and (not _WORD.fullmatch(value) or value.lower() in _NOT_WORDS):
        return f"{key}={quoted(value)}"
    return f"{key}={as_text(value)}"


def as_text(value: Any) -> str:
    """A value as YAML writes it."""
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def quoted(text: str) -> str:
    """A text in Hydra's quotes, where a backslash escapes only a quote."""
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text) + "'"
