"""Checks the targets of a configuration that comes back from MLflow or a checkpoint, so that it runs no foreign code.

A configuration that the user writes on this machine may name any target.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Collection, Iterator, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from feedrate.cli.targets import locate
from feedrate.config import ROOT, SHIPPED
from feedrate.errors import UserError

_TORCH = ("torch.nn", "torch.optim", "torch.optim.lr_scheduler")
_SHIPPED_PACKAGES = ("feedrate", "hydra_plugins")  # of these only some kinds of classes are allowed


def check_targets(nodes: Mapping[str, Any], allow: Collection[str] = (), *, own: bool = False) -> None:
    """Checks every `_target_`, nested ones too, before any is imported.

    Allowed are what conf/ ships, feedrate's models, datasets and loaders, and the modules, optimizers and schedulers in
    torch.nn, torch.optim and torch.optim.lr_scheduler. Hydra's own block list allows torch.load, Path.unlink and open.

    Args:
        nodes: configuration nodes by name, plain containers without interpolations.
        allow: further import paths.
        own: also allow classes defined in files of this repository, which made the run.

    Raises:
        UserError: names the targets that are not allowed, and the key that allows them.
    """
    foreign: dict[str, str] = {}
    for key, value in _walk(nodes, ""):
        if isinstance(value, str) and "${" in value:
            raise UserError(
                f"{key}={value}: an interpolation in a restored configuration is refused; write the value into it"
            )
        if key.rpartition(".")[2] != "_target_":
            continue
        if not isinstance(value, str):
            raise UserError(f"{key}={value!r}: must be the import path of a class")
        if value not in SHIPPED and value not in allow and not _is_known(value) and not (own and _lies_here(value)):
            foreign[key] = value
    if foreign:
        named = ", ".join(f"{key}={value}" for key, value in foreign.items())
        raise UserError(
            f"{named}: the run's configuration names code that Feedrate does not ship; "
            f"if you trust it, add allow=[{','.join(dict.fromkeys([*allow, *foreign.values()]))}]"
        )


def _walk(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Every scalar with its dotted key, and each `_target_`."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            path = f"{key}.{name}" if key else str(name)
            if name == "_target_":
                yield path, inner
            else:
                yield from _walk(inner, path)
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from _walk(inner, f"{key}.{index}")
    else:
        yield key, value


def _is_known(path: str) -> bool:
    """Whether it is a class of feedrate or torch, of a kind that configurations build.

    The kind counts, since feedrate.runs.provenance.subprocess.run is an import path too.
    """
    module, _, name = path.rpartition(".")
    own = path.startswith("feedrate.")
    if not _is_public(path) or not (own or module in _TORCH):
        return False
    from torch import nn, optim
    from torch.utils.data import DataLoader, Dataset

    try:
        found = locate(path, name)
    except UserError:
        return False
    kinds = (nn.Module, Dataset, DataLoader) if own else (nn.Module, optim.Optimizer, optim.lr_scheduler.LRScheduler)
    home = "feedrate." if own else "torch."
    return inspect.isclass(found) and issubclass(found, kinds) and found.__module__.startswith(home)


def _is_public(path: str) -> bool:
    return all(part.isidentifier() and not part.startswith("_") for part in path.split("."))


def _lies_here(path: str) -> bool:
    """Whether it is the user's own class in a file of this repository; imports nothing from elsewhere.

    Raises:
        UserError: its module is in this repository, and cannot be imported.
    """
    package = path.partition(".")[0]
    if not _is_public(path) or package in (path, *_SHIPPED_PACKAGES):
        return False
    spec = PathFinder.find_spec(package)
    places = [] if spec is None else [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())
    if not places or not all(map(_is_of_repository, places)):
        return False
    target = locate(path, path)
    return inspect.isclass(target) and _is_of_repository(getattr(sys.modules.get(target.__module__), "__file__", None))


def _is_of_repository(file: str | None) -> bool:
    if file is None:
        return False
    path, environment = Path(file).resolve(), Path(sys.prefix).resolve()
    installed = "site-packages" in path.parts or (environment.is_relative_to(ROOT) and path.is_relative_to(environment))
    return path.is_relative_to(ROOT) and not installed
