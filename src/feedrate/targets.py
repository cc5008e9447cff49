"""From a configuration node with `_target_` to an object: find the class, check its keys, build it.

What may be named is decided here; which values shipped classes accept is decided in config.py.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

from feedrate.config import SHIPPED, common_keys, nearest
from feedrate.errors import UserError

log = logging.getLogger("feedrate")


def locate(path: str, group: str) -> Callable[..., Any]:
    """The class or function at an import path.

    Raises:
        UserError: when it cannot be imported, with the reason.
    """
    try:
        found = _import(path)
    except Exception as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            f"{group}._target_={path}: cannot be imported ({reason})\n"
            "Searched: src/, the repository root, PYTHONPATH and the installed packages"
        ) from error
    if not callable(found):
        raise UserError(f"{group}._target_={path}: names a {type(found).__name__}; a class is needed")
    return found  # type: ignore[no-any-return]


def _import(path: str) -> Any:
    """The object at a dotted path: the longest prefix that is a module, and attributes of it."""
    parts = path.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:cut])
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if cut == 1 or not (error.name and module.startswith(error.name)):
                raise  # also when the module is there, but something that it imports is not
            continue
        for name in parts[cut:]:
            found = getattr(found, name)
        return found
    raise ImportError("a dot is needed between module and class")


def takes(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The named parameters of a class's constructor or of a function."""
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:  # a class written in C without a signature: nothing can be checked
        return {}
    return {name: p for name, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def build(
    node: Mapping[str, Any], group: str, injected: Mapping[str, Any], common: Collection[str] = frozenset()
) -> Any:
    """The object that `node` describes.

    Args:
        node: `_target_` and the keys of its constructor; a key may itself be a node with `_target_`.
        group: the node's name in messages.
        injected: values offered to the constructor; those that it does not name are left out.
        common: keys of the node that are not meant for the constructor unless it names them.

    Raises:
        UserError: for a key that the constructor does not know, one that it lacks, or when it refuses.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    path = str(node["_target_"])
    target = locate(path, group)
    known = takes(target)
    open_ended = not known or any(p.kind is p.VAR_KEYWORD for p in inspect.signature(target).parameters.values())
    keys = {k: v for k, v in node.items() if k != "_target_" and (k in known or k not in common)}
    offered = {k: v for k, v in injected.items() if k in known}

    unknown = [] if open_ended else [k for k in keys if k not in known]
    if unknown and path not in SHIPPED and set(unknown) <= _shipped_keys(group):
        # `model=mlp model._target_=my.Net` keeps the keys of mlp.yaml: they are the other class's, not a mistake
        log.info("note: %s not used: %s does not take %s", _listed(group, unknown), path, _them(unknown))
        keys = {k: v for k, v in keys.items() if k not in unknown}
    elif unknown:
        valid = [k for k in known if k not in offered and k != "self"]
        raise UserError(
            f"{_listed(group, unknown)}: {path} does not take {_them(unknown)}{nearest(unknown[0], valid)}\n"
            f"It takes: {', '.join(valid) or 'nothing'}"
        )
    required = [k for k, p in known.items() if p.default is p.empty and k not in keys and k not in offered]
    if required:
        raise UserError(f"{_listed(group, required)}: {path} needs {_them(required)}; set it, or give a default")

    offered = {k: v for k, v in offered.items() if k not in keys or keys[k] is None}
    keys = {k: v for k, v in keys.items() if k not in offered}
    try:
        # partial: what is injected (tensors, catalogs) must not pass through OmegaConf, which would copy it
        factory = instantiate({"_target_": path, **keys}, _partial_=True, _convert_="all")
        return factory(**offered)
    except UserError:
        raise
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, UserError):
            raise cause from None
        raise UserError(f"{group}: {path} cannot be built: {str(cause).splitlines()[0]}") from error
    except Exception as error:
        raise UserError(f"{group}: {path}(...) failed with {type(error).__name__}: {error}") from error


def _shipped_keys(group: str) -> set[str]:
    homes: dict[str, str | tuple[str, ...]] = {
        "model": "feedrate.model.",
        "optimizer": "torch.optim.",
        "scheduler": ("torch.optim.lr_scheduler.", "feedrate.trainer."),
        "dataset": "feedrate.dataset.",
    }
    prefix = homes.get(group, ())
    return {key for path, schema in SHIPPED.items() if path.startswith(prefix) for key in common_keys(schema)}


def _listed(group: str, keys: Collection[str]) -> str:
    return ", ".join(f"{group}.{key}" for key in keys)


def _them(keys: Collection[str]) -> str:
    return "it" if len(keys) == 1 else "them"
