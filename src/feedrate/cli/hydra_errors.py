"""Hydra's and OmegaConf's errors as one to three lines: the key or file, what is wrong, and the remedy."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException

from feedrate.config import ROOT, shown_path

CONF = ROOT / "conf"


def describe_composition(error: BaseException) -> str:
    """What went wrong while Hydra composed a configuration; empty for other errors."""
    if fault := _fault_in_file(error):
        return fault
    if not isinstance(error, (HydraException, OmegaConfBaseException)):
        return ""
    text = str(error)
    if match := re.search(r"Could not override '([\w.@/]+)'", text):
        typed = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
        return (
            lacking_package(typed, match[1].partition("@")[2])  # model@experiment.model
            or _unknown_key(match[1], error.__cause__)
        )
    if match := re.search(r"Could not find '([\w/-]+)/([^/']*)'", text):
        return _unknown_option(match[1], match[2])
    if isinstance(error, OverrideParseException):
        key = error.override.partition("=")[0]
        return (
            f"{error.override}: its value cannot be read; lists are written {key}=[VALUE,VALUE], and a text with "
            f"'=', brackets, commas, braces, quotes, spaces or letters beyond a to z in quotes: '{key}=\"TEXT\"'"
        )
    if match := re.search(r"Ambiguous value for argument '([^']+)'", text):
        return f"{match[1]}: several values make a sweep, which needs -m; one list is written KEY=[VALUE,VALUE]"
    lines = (line.strip() for line in f"{text}\n{error.__cause__ or ''}".splitlines())
    kept = dict.fromkeys(line for line in lines if line and not line.startswith(("See", "full_key", "object_type")))
    return "\n".join(list(kept)[:3])


def lacking_package(choices: Mapping[str, Any], key: str) -> str:
    """Names the option's file that lacks `# @package _global_`, so that its `key` lands below its group; else empty."""
    group = key.partition(".")[0]
    if group not in ("experiment", "debug", "local") or not choices.get(group):
        return ""
    name = f"{group}/{choices[group]}.yaml"
    places = [CONF, *(Path(place) for place in re.findall(r"file://([^\],'\"]+)", " ".join(sys.argv)))]
    file = next((shown_path(place / name) for place in places if (place / name).is_file()), name)
    return f"{file}, line 1: `# @package _global_` must stand there, or the file sets keys below {group}"


def _fault_in_file(error: BaseException) -> str:
    """Name, line and fault of a file that Hydra could not read; else empty."""
    from yaml import MarkedYAMLError  # type: ignore[import-untyped]

    from feedrate.validation import yaml_fault

    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    reading = next((f for f in frames if f.f_code.co_filename.endswith("file_config_source.py")), None)
    if reading is None or "full_path" not in reading.f_locals:
        return ""
    file = Path(reading.f_locals["full_path"])
    if isinstance(error, MarkedYAMLError):
        return f"{shown_path(file)}, {yaml_fault(error)}"
    cause = error.__cause__ or error
    hints: dict[type[BaseException], str] = {
        UnicodeDecodeError: "save the file as UTF-8",
        GrammarParseError: "an interpolation is written ${GROUP.KEY}",
    }
    text = str(cause).splitlines()[0]
    if (hint := hints.get(type(cause))) is None:
        return f"{shown_path(file)}: {text}"
    return f"{shown_path(file)}, line {_line_of_fault(file)}: {text}; {hint}"


def _line_of_fault(file: Path) -> int:
    """The first line that is not UTF-8, or whose value OmegaConf cannot parse; 1 if there is none."""
    import yaml

    line = 1
    try:
        for token in yaml.scan(file.read_text(encoding="utf-8")):
            if isinstance(token, yaml.ScalarToken):
                line = int(token.start_mark.line) + 1
                OmegaConf.create([token.value])
    except UnicodeDecodeError as error:
        return error.object.count(b"\n", 0, error.start) + 1
    except GrammarParseError:
        return line
    return 1


def _unknown_key(key: str, cause: BaseException | None) -> str:
    """Says which part of a key does not exist, from OmegaConf's error, and what does."""
    from feedrate.validation import nearest

    node = getattr(cause, "parent_node", None)
    valid = [str(k) for k in node if str(k) not in ("_target_", "hydra")] if isinstance(node, DictConfig) else []
    parent, _, name = str(getattr(cause, "full_key", None) or key).rpartition(".")
    text = f"{key} is not a key of the group {parent}" if parent else f"{key}: there is no {name}"
    text += nearest(name, valid) + (f"\nValid keys: {', '.join(valid)}" if valid else "")
    if parent.partition(".")[0] in ("dataset", "model", "optimizer", "scheduler"):
        text += f"\nFor a class of your own that takes it, write +{key}=..."
    return text


def _unknown_option(group: str, option: str) -> str:
    from feedrate.validation import nearest

    options = sorted(path.stem for path in (CONF / group).glob("*.yaml") if path.is_file())
    said = f"no such option{nearest(option, options)}"
    if (group, option) == ("loader", "tuned"):
        said = "has not been written yet; python src/tune.py with your dataset and model writes it"
    return f"{group}={option}: {said}\nOptions of {group}: {', '.join(options) or 'none'}"
