"""What a configuration that comes back from MLflow or a checkpoint's folder may name, so that it runs no foreign code.

A configuration that the user writes on this machine may name anything: see targets.py.
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
    """Looks at every `_target_`, nested ones too, before any is imported or built.

    Allowed are what conf/ ships, the models, datasets and loaders of feedrate, and the modules, optimizers and
    schedulers that stand in torch.nn, torch.optim and torch.optim.lr_scheduler. Hydra's own block list is no help:
    it lets torch.load, Path.unlink and open through.

    Args:
        nodes: configuration nodes by name, plain containers without interpolations.
        allow: further import paths, which the user vouches for.
        own: this repository made the run, so classes that are defined in its files are allowed, too.

    Raises:
        UserError: naming the targets that are not allowed, and the key that allows them.
    """
    foreign: dict[str, str] = {}
    for key, value in _walk(nodes, ""):
        if isinstance(value, str) and "${" in value:
            raise UserError(
                f"{key}={value}: a configuration that comes back may not hold an interpolation, since it would be "
                "resolved on this machine; write the value into it"
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
    """Every scalar with its dotted key; `_target_` also where it is no scalar."""
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
    """Whether it is a class of one of the kinds that are built from a configuration, in feedrate or torch itself.

    The kind is what counts: modules import others, so feedrate.runs.provenance.subprocess.run is a path too.
    """
    module, _, name = path.rpartition(".")
    own = path.startswith("feedrate.")
    if not _is_public(path):
        return False
    if not own and module not in _TORCH:
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
    """Whether it is a class of the user's own, defined in a file of this repository; imports nothing from elsewhere.

    Raises:
        UserError: its module lies here, and cannot be imported.
    """
    parts, places, found = path.split("."), None, False
    if not _is_public(path) or parts[0] in _SHIPPED_PACKAGES:
        return False
    for count in range(1, len(parts)):
        spec = PathFinder.find_spec(".".join(parts[:count]), places)
        if spec is None:
            break
        if spec.origin is not None and not _is_of_repository(spec.origin):  # a package is imported, too
            return False
        found, places = spec.origin is not None, list(spec.submodule_search_locations or ())
    if not found:
        return False
    target = locate(path, path)
    return inspect.isclass(target) and _is_of_repository(getattr(sys.modules.get(target.__module__), "__file__", None))


def _is_of_repository(file: str | None) -> bool:
    if file is None:
        return False
    path, environment = Path(file).resolve(), Path(sys.prefix).resolve()
    installed = "site-packages" in path.parts or (environment.is_relative_to(ROOT) and path.is_relative_to(environment))
    return path.is_relative_to(ROOT) and not installed
