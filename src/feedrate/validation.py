"""Checks values against a schema of config.py; a mistake is reported with key, value and rule."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from feedrate.errors import UserError


def nearest(name: str, valid: list[str]) -> str:
    """'; did you mean ...?' with the closest of the valid names, or an empty text."""
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def validate(schema: type, values: Mapping[str, Any], prefix: str) -> Any:
    """`values` as a `schema`; `prefix` is the group's name in messages, empty for the root."""
    try:
        return TypeAdapter(schema).validate_python(dict(values))
    except ValidationError as error:
        raise UserError(_describe(error, schema, prefix)) from None


_RULES = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text",
    "list_type": "a list",
    "missing": "given",
    "finite_number": "a finite number",
    "dict_type": "a group of keys",
    "dataclass_type": "a group of keys",
    "string_too_short": "a text that is not empty",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "string_pattern_mismatch": "auto, cpu, cuda, mps or xpu, or one of several devices, such as cuda:1",
}


def _describe(error: ValidationError, schema: type, prefix: str) -> str:
    """At most three lines, one per wrong key; unknown keys first, since a mistyped key is missing as well."""
    unknown: list[str] = []
    wrong: dict[str, tuple[Any, list[str]]] = {}
    for item in error.errors(include_url=False):
        owner, path = _walk(schema, [str(part) for part in item["loc"]])
        key = ".".join(([prefix] if prefix else []) + path)
        if item["type"] == "unexpected_keyword_argument":
            valid = [f.name for f in fields(owner)]
            unknown.append(
                f"{key} is not a key of this group{nearest(path[-1], valid)}\nValid keys: {', '.join(valid)}"
            )
        else:
            rule = _RULES.get(item["type"], "").format(**item.get("ctx", {}))
            rule = rule or item["msg"].removeprefix("Input should be ")
            rule = rule.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
            value = None if item["type"] == "missing" else item["input"]
            wrong.setdefault(key, (value, []))[1].append(rule)
    lines = [
        f"{key}={as_yaml(value)}: must be {' or '.join(dict.fromkeys(rules))}{_in_quotes(key, value, rules)}"
        for key, (value, rules) in wrong.items()
    ]
    return "\n".join((unknown[:1] or lines)[:3])


def _walk(schema: type, names: list[str]) -> tuple[type, list[str]]:
    """The schema that owns an error, and the key's path without the tail that names a union's alternative."""
    owner, path = schema, []
    for name in names:
        path.append(name)
        following = get_type_hints(owner).get(name)
        if not (isinstance(following, type) and is_dataclass(following)):
            break
        owner = following
    return owner, path


def _in_quotes(key: str, value: Any, rules: list[str]) -> str:
    """How to write a text that YAML reads as something else: 2024, 1e5, true."""
    if _RULES["string_type"] not in rules or not isinstance(value, (bool, int, float)):
        return ""
    typed = (argument.lstrip("+").partition("=") for argument in sys.argv[1:])
    text = next((given for name, _, given in typed if name == key), as_yaml(value))
    return f"""; write '{key}="{text}"' on the command line, "{text}" in a file"""


def yaml_fault(error: Any) -> str:
    """Line and fault of a YAML file, from a MarkedYAMLError."""
    return f"line {error.problem_mark.line + 1}: {' '.join(filter(None, (error.context, error.problem)))}"


def as_yaml(value: Any) -> str:
    """A value as it is written in YAML."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
