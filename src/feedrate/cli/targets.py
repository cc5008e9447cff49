"""Builds the object that a configuration node with `_target_` describes, and checks which targets are allowed.

A configuration that the user writes on this machine may name any target; one that comes back from MLflow or a
checkpoint only those that `check_targets` allows.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from feedrate.config import ROOT, SHIPPED
from feedrate.errors import UserError, raised_at
from feedrate.validation import nearest

_TORCH = ("torch.nn", "torch.optim", "torch.optim.lr_scheduler")
_OURS = ("feedrate", "hydra_plugins")


def locate(path: str, group: str) -> Callable[..., Any]:
    """The class or function at an import path."""
    from hydra._internal.utils import _locate

    try:
        found = _locate(path)
    except (Exception, SystemExit) as error:  # a script without a main guard may exit on import
        cause = error.__cause__ or error
        module, _, name = path.rpartition(".")
        near = nearest(name, dir(sys.modules[module])) if module in sys.modules else ""
        raise UserError(
            f"{group}._target_={path}: cannot be imported ({first_line(cause)}{near}){raised_at(cause)}\n"
            "Searched: src/, the repository root, PYTHONPATH and the installed packages"
        ) from error
    if not callable(found):
        raise UserError(f"{group}._target_={path}: names a {type(found).__name__}; a class is needed")
    return found  # type: ignore[no-any-return]


def takes(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The named parameters of a function or a constructor, with those of the base class that `**kwargs` go to."""
    found: dict[str, inspect.Parameter] = {}
    for level in inspect.getmro(target) if inspect.isclass(target) else (target,):
        parameters, is_open = _parameters(level)
        for name, p in parameters.items():
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                # the class itself may give an inherited one, so it is not required
                found.setdefault(name, p if level is target else p.replace(default=None, kind=p.KEYWORD_ONLY))
        if not is_open or not parameters:
            break
    return found


def _parameters(target: Callable[..., Any]) -> tuple[Mapping[str, inspect.Parameter], bool]:
    """The parameters, and whether others are allowed, as for classes written in C, which have no signature."""
    try:
        found = inspect.signature(target).parameters
    except (ValueError, TypeError):
        return {}, True
    return found, any(p.kind is p.VAR_KEYWORD for p in found.values())


def build(
    node: Mapping[str, Any], group: str, injected: Mapping[str, Any], common: Collection[str] = frozenset()
) -> Any:
    """The object that `node` describes: `_target_` and keys of its constructor, which may be nodes themselves.

    Args:
        injected: values for the parameters of the same name, where the constructor has them and no key is given.
        common: keys that reach the constructor only if it names them and they are not null.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    path = str(node["_target_"])
    target = locate(path, group)
    known = takes(target)
    keys = {k: v for k, v in node.items() if k != "_target_" and (k not in common or (k in known and v is not None))}
    offered = {k: v for k, v in injected.items() if k in known and keys.get(k) is None}
    keys = {k: v for k, v in keys.items() if k not in offered}
    unknown = [] if _parameters(target)[1] else [k for k in keys if k not in known]
    if unknown:
        valid = [k for k in known if k not in injected and k != "self"]
        raise UserError(
            f"{', '.join(f'{group}.{key}' for key in unknown)}: not taken by {path}{nearest(unknown[0], valid)}\n"
            f"It takes: {', '.join(valid) or 'nothing'}"
        )
    required = [k for k, p in known.items() if p.default is p.empty and k not in keys and k not in offered]
    if required:
        listed = ", ".join(f"{group}.{key}" for key in required)
        raise UserError(f"{listed}: needed by {path}; set it, or give a default")
    try:
        # partial, since OmegaConf would copy what is injected (tensors, catalogs)
        factory = instantiate({"_target_": path, **keys}, _partial_=True, _convert_="all")
        return factory(**offered)
    except UserError:
        raise
    except Exception as error:
        cause = (error.__cause__ if isinstance(error, InstantiationException) else None) or error
        if isinstance(cause, UserError):
            raise cause from None
        within = re.search(r"^full_key: (\S+)$", str(error), re.MULTILINE)
        key = f"{group}.{within[1]}" if within else group
        hint = "\nTo pass a nested function or class itself, add _partial_=true" if within else ""
        raise UserError(f"{key}: {path}(...) failed with {first_line(cause)}{hint}") from error


def first_line(error: BaseException) -> str:
    """Type and text of an error."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no text'])[0]}"


# -- Targets that are allowed -----------------------------------------------------------------------------


def check_targets(nodes: Mapping[str, Any], allow: Collection[str] = (), *, own: bool = False) -> None:
    """Checks every `_target_` in configuration nodes, nested ones too, before any is imported.

    Allowed are what conf/ ships, feedrate's models, datasets and loaders, and the modules, optimizers and schedulers in
    torch.nn, torch.optim and torch.optim.lr_scheduler; paths in `allow`; and with `own` the classes defined in files of
    this repository, which made the run. Hydra's own block list allows torch.load, Path.unlink and open.
    """
    foreign: dict[str, str] = {}
    for key, value in _scalars(nodes, ""):
        if "${" in str(value):
            raise UserError(f"{key}={value}: an interpolation in a restored configuration is refused; write its value")
        if "_target_" in key.split(".") and not (
            value in SHIPPED or value in allow or _is_allowed(str(value), own=own)
        ):
            foreign[key] = str(value)
    if foreign:
        named = ", ".join(f"{key}={value}" for key, value in foreign.items())
        raise UserError(
            f"{named}: the run's configuration names code that Feedrate does not ship; "
            f"if you trust it, add allow=[{','.join(dict.fromkeys([*allow, *foreign.values()]))}]"
        )


def _scalars(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Every scalar with its dotted key."""
    if isinstance(value, (Mapping, list, tuple)):
        for name, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _scalars(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def _is_allowed(path: str, *, own: bool) -> bool:
    """Whether it is a class of feedrate or torch of a kind that configurations build, or one of the user's own here.

    The kind counts, since feedrate.runs.provenance.subprocess.run is an import path too.
    """
    module, _, name = path.rpartition(".")
    package = path.partition(".")[0]
    if not module or not all(part.isidentifier() and not part.startswith("_") for part in path.split(".")):
        return False
    if module not in _TORCH and package != "feedrate":
        return own and package not in _OURS and _lies_here(path)
    from torch import nn, optim
    from torch.utils.data import DataLoader, Dataset

    kinds = (nn.Module, optim.Optimizer, optim.lr_scheduler.LRScheduler, Dataset, DataLoader)
    try:
        found = locate(path, name)
    except UserError:
        return False
    return inspect.isclass(found) and issubclass(found, kinds) and found.__module__.startswith(f"{package}.")


def _lies_here(path: str) -> bool:
    """Whether it is a class in a file of this repository; imports nothing from elsewhere."""
    spec = PathFinder.find_spec(path.partition(".")[0])
    if spec is None or not _is_of_repository(spec.origin or next(iter(spec.submodule_search_locations or ()), "")):
        return False
    target = locate(path, path)
    return inspect.isclass(target) and _is_of_repository(
        getattr(sys.modules.get(target.__module__), "__file__", "") or ""
    )


def _is_of_repository(file: str) -> bool:
    path = Path(file or "/").resolve()
    environment = Path(sys.prefix).resolve()
    installed = "site-packages" in path.parts or (environment.is_relative_to(ROOT) and path.is_relative_to(environment))
    return path.is_relative_to(ROOT) and not installed
