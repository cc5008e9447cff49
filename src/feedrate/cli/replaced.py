"""A `_target_` that replaces an option's own starts from its class's defaults, not from the option's keys.

`optimizer._target_=torch.optim.RMSprop` is merged by Hydra over conf/optimizer/adamw.yaml, whose weight_decay was meant
for AdamW. Keys on the command line or in an experiment are kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf, open_dict

from feedrate.cli.targets import locate, takes
from feedrate.config import ROOT, SHIPPED, SchedulerConfig, common_keys
from feedrate.validation import as_yaml

_GROUPS = ("dataset", "loader", "model", "optimizer", "scheduler")


def own_defaults(config: DictConfig, job: HydraConf) -> tuple[DictConfig, list[str]]:
    """The configuration with the defaults of such classes, and a note for each; `job` is Hydra's own node."""
    if not job.runtime.config_sources:  # a job of a sweep, for which the sweep has done this
        return config, []
    choices = job.runtime.choices
    found = {group: _target(config._get_node(group)) for group in _GROUPS if choices.get(group)}
    replaced = {group: t for group, t in found.items() if t and t != _stated(group, choices[group], job)}
    if not replaced:
        return config, []
    given = _without_options(list(replaced), job)
    notes, config = [], config.copy()
    for group, target in replaced.items():
        if _target(given._get_node(group)) == target:  # otherwise the option inherits it from another one
            with open_dict(config):
                config[group], note = _restarted(group, target, config[group], given[group])
            notes.append(f"note: {group}._target_={target} replaces {group}={choices[group]}: {note}")
    return config, notes


def _target(node: Any) -> str | None:
    return str(node["_target_"]) if isinstance(node, DictConfig) and "_target_" in node else None


def _stated(group: str, option: str, job: HydraConf) -> str | None:
    """The target in an option's file, or None."""
    files = [Path(s.path, group, f"{option}.yaml") for s in job.runtime.config_sources if s.schema == "file"]
    return next((_target(OmegaConf.load(file)) for file in files if file.is_file()), None)


def _without_options(groups: list[str], job: HydraConf) -> DictConfig:
    """The job composed without the options of these groups: only what other files and the command line set."""
    overrides = [one for one in job.overrides.hydra if one.lstrip("+").startswith("hydra.searchpath")]
    for one in job.overrides.task:
        key = one.partition("=")[0]
        group, dot, _ = key.lstrip("+~").partition(".")
        if group not in groups:
            overrides.append(one)
        elif dot and not key.startswith("~"):
            overrides.append(f"++{one.lstrip('+')}")  # without the option the key does not exist
    overrides += [f"~{group}" for group in groups]
    known = GlobalHydra.instance().is_initialized()
    with contextlib.nullcontext() if known else hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return hydra.compose(job.job.config_name, overrides)


def _restarted(group: str, target: str, node: DictConfig, given: DictConfig) -> tuple[DictConfig, str]:
    """The node with the class's defaults in place of the option's values, and a note on them."""
    known = takes(locate(target, group))
    with open_dict(given):
        new = given.copy()
    schema = common_keys(SHIPPED[target]) if target in SHIPPED else frozenset()
    own: dict[str, Any] = {}
    kept: list[str] = []
    for key in dict.fromkeys([*map(str, node), *sorted(schema)]):
        default = known[key].default if key in known else None
        if key in given:
            continue
        if key in node and _is_needed(group, key, known):
            new[key] = node._get_node(key)
            kept.append(key)
        elif key in known and isinstance(default, (bool, int, float, str, list, tuple, type(None))):
            own[key] = list(default) if isinstance(default, tuple) else default
        elif (group, key) == ("scheduler", "interval"):
            own[key] = SchedulerConfig.interval
    new.update(own)
    note = "its own defaults are used" + (f" ({', '.join(f'{k}={as_yaml(v)}' for k, v in own.items())})" if own else "")
    carried = ", ".join(f"{group}.{key}={as_yaml(node[key])}" for key in kept if not OmegaConf.is_missing(node, key))
    return new, note + (f"; carried over, as they are needed: {carried}" if carried else "")


def _is_needed(group: str, key: str, known: Mapping[str, Any]) -> bool:
    """Whether a value of the option is needed, since the class has no default for it."""
    if key not in known or (key == "root" and "list_IDs" in known):
        return key == "root" and "list_IDs" in known
    return group == "loader" or known[key].default is known[key].empty  # other groups refer to the keys of every loader
