"""Hydra's and OmegaConf's errors as one to three lines: the key or file, what is wrong, and the remedy."""

from __future__ import annotations

import contextlib
import re
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
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
        return lacking_package(typed, match[1].partition("@")[2]) or _unknown_key(match[1])  # model@experiment.model
    if match := re.search(r"Could not find '([\w/-]+)/([^/']*)'", text):
        return _unknown_option(match[1], match[2])
    if match := re.search(r"Could not (?:override|append|delete|find match)[^\n]*'([\w/]+)'", text):
        return _unknown_key(match[1])
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
    """Names the option's file that lacks `# @package _global_`, so that its keys land below its group; else empty.

    Args:
        choices: option of each group.
        key: that is not known, as GROUP or GROUP.KEY.
    """
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
    if isinstance(error, UnicodeDecodeError):
        line = file.read_bytes()[: error.start].count(b"\n") + 1
        return f"{shown_path(file)}, line {line}: is not in UTF-8; save the file in UTF-8"
    cause = error.__cause__ or error
    text = str(cause).splitlines()[0]
    if not isinstance(cause, GrammarParseError):
        return f"{shown_path(file)}: {text}"
    wrong = text.rpartition(" input ")[2].strip("'\"")
    lines = file.read_text(encoding="utf-8").splitlines()
    where = next((f", line {number}" for number, line in enumerate(lines, 1) if wrong and wrong in line), "")
    return f"{shown_path(file)}{where}: an interpolation cannot be read ({text}); it is written ${{GROUP.KEY}}"


def _unknown_key(key: str) -> str:
    from feedrate.validation import nearest

    group = key.partition(".")[0]
    if not (composed := _composed(key)):
        return f"{key}: there is no such key"
    parent, _, name = key.rpartition(".")
    while parent and not isinstance(OmegaConf.select(composed, parent), DictConfig):
        parent, _, name = parent.rpartition(".")
    node = OmegaConf.select(composed, parent) if parent else composed
    valid = [str(k) for k in node if not str(k).startswith("_")]
    text = f"{key} is not a key of the group {parent}" if parent else f"{key}: there is no {name}"
    text += nearest(name, valid)
    text += f"\nValid keys: {', '.join(valid)}" if valid else ""
    if parent and group in ("dataset", "model", "optimizer", "scheduler"):
        text += f"\nFor a class of your own that takes it, write +{key}=..."
    return text


def _composed(wrong: str) -> DictConfig:
    """The configuration with the options of the command line except the wrong one."""
    typed = [argument for argument in sys.argv[1:] if re.fullmatch(r"[\w/]+=[\w-]+|~\w+", argument)]
    groups = [argument.lstrip("~").partition("=")[0] for argument in typed]
    chosen = [a for a, group in zip(typed, groups, strict=True) if group != wrong and (CONF / group).is_dir()]
    known = GlobalHydra.instance().is_initialized()  # where the job itself composes a configuration
    of_hydra = "hydra" in " ".join(sys.argv[1:])
    try:
        with contextlib.nullcontext() if known else hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            return hydra.compose(Path(sys.argv[0]).stem, overrides=chosen, return_hydra_config=of_hydra)
    except Exception:  # only the list of valid keys is lost
        return OmegaConf.create()


def _unknown_option(group: str, option: str) -> str:
    from feedrate.validation import nearest

    options = sorted(path.stem for path in (CONF / group).glob("*.yaml") if path.is_file())
    said = f"no such option{nearest(option, options)}"
    if (group, option) == ("loader", "tuned"):
        said = "has not been written yet; python src/tune.py with your dataset and model writes it"
    return f"{group}={option}: {said}\nOptions of {group}: {', '.join(options) or 'none'}"
