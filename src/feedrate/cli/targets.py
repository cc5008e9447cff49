"""Builds the object that a configuration node with `_target_` describes: finds the class, checks its keys, calls it."""

from __future__ import annotations

import importlib
import inspect
import logging
import re
import traceback
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from feedrate.config import SHIPPED, common_keys
from feedrate.errors import UserError
from feedrate.validation import nearest

log = logging.getLogger("feedrate")


def locate(path: str, group: str) -> Callable[..., Any]:
    """The class or function at an import path.

    Raises:
        UserError: it cannot be imported, with the reason.
    """
    try:
        found = _import(path)
    except (Exception, SystemExit) as error:  # a script without a main guard may exit on import
        raise UserError(
            f"{group}._target_={path}: cannot be imported ({_reason(error)})\n"
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
            if cut == 1 or not (error.name and f"{module}.".startswith(f"{error.name}.")):
                raise  # also where the module is found and one that it imports is not
            continue
        for name in parts[cut:]:
            if not hasattr(found, name):
                near = nearest(name, [known for known in dir(found) if not known.startswith("_")])
                raise ImportError(f"{getattr(found, '__name__', module)} has no {name}{near}")
            found = getattr(found, name)
        return found
    raise ImportError("a dot is needed between module and class, such as my_package.MyClass")


def _reason(error: BaseException) -> str:
    """The error's text; of an error raised by the imported module also type and place."""
    text = (str(error).strip().splitlines() or ["no text"])[-1]
    if isinstance(error, ImportError):
        return text
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<")]
    place = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if len(frames) > 1 else ""
    return f"{type(error).__name__}: {text}{place}"


def takes(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The named parameters of a function or a constructor, with those of the base class that `**kwargs` go to."""
    found: dict[str, inspect.Parameter] = {}
    for level in inspect.getmro(target) if inspect.isclass(target) else (target,):
        parameters = _signature(level)
        if parameters is None:  # written in C
            break
        for name, p in parameters.items():
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                # the class itself may give an inherited one, so it is not required
                found.setdefault(name, p if level is target else p.replace(default=None, kind=p.KEYWORD_ONLY))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            break
    return found


def _signature(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    try:
        return inspect.signature(target).parameters
    except (ValueError, TypeError):
        return None


def build(
    node: Mapping[str, Any], group: str, injected: Mapping[str, Any], common: Collection[str] = frozenset()
) -> Any:
    """The object that `node` describes.

    Args:
        node: `_target_` and the keys of its constructor; a key may itself be a node with `_target_`.
        group: the node's name in messages.
        injected: values for the parameters of the same name, where the constructor has them and no key is given.
        common: keys that reach the constructor only if it names them and they are not null.

    Raises:
        UserError: the constructor does not know a key, lacks one, or raises.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    path = str(node["_target_"])
    target = locate(path, group)
    known = takes(target)
    signature = _signature(target)
    open_ended = signature is None or any(p.kind is p.VAR_KEYWORD for p in signature.values())
    keys = {k: v for k, v in node.items() if k != "_target_" and (k not in common or (k in known and v is not None))}
    offered = {k: v for k, v in injected.items() if k in known}

    unknown = [] if open_ended else [k for k in keys if k not in known]
    # `model=mlp model._target_=my.Net` keeps the keys of mlp.yaml, which are no mistake
    aside = [k for k in unknown if path not in SHIPPED and k in _shipped_keys(group)]
    if unknown := [k for k in unknown if k not in aside]:
        valid = [k for k in known if k not in offered and k != "self"]
        raise UserError(
            f"{_listed(group, unknown)}: {path} does not take {_them(unknown)}{nearest(unknown[0], valid)}\n"
            f"It takes: {', '.join(valid) or 'nothing'}"
        )
    if aside:
        log.info("note: %s not used: %s does not take %s", _listed(group, aside), path, _them(aside))
        keys = {k: v for k, v in keys.items() if k not in aside}
    required = [k for k, p in known.items() if p.default is p.empty and k not in keys and k not in offered]
    if required:
        raise UserError(f"{_listed(group, required)}: {path} needs {_them(required)}; set it, or give a default")

    offered = {k: v for k, v in offered.items() if k not in keys or keys[k] is None}
    keys = {k: v for k, v in keys.items() if k not in offered}
    try:
        # partial, since OmegaConf would copy what is injected (tensors, catalogs)
        factory = instantiate({"_target_": path, **keys}, _partial_=True, _convert_="all")
        return factory(**offered)
    except UserError:
        raise
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, UserError):
            raise cause from None
        raise _unbuilt(error, cause, group, path) from error
    except Exception as error:
        raise UserError(f"{group}: {path}(...) failed with {_first_line(error)}") from error


def _unbuilt(error: Exception, cause: BaseException, group: str, path: str) -> UserError:
    """Names the node that could not be built, which may lie within this one."""
    within = re.search(r"^full_key: (\S+)$", str(error), re.MULTILINE)
    named = re.search(r"target '([^']+)'", str(error))
    hint = ""
    if within and named:
        group, path = f"{group}.{within[1]}", named[1]
        try:
            function = not inspect.isclass(locate(path, group))
        except UserError as reason:
            return reason
        if function and isinstance(cause, TypeError):
            hint = "\nA function is called when the node is built; to pass the function itself, add _partial_=true"
    return UserError(f"{group}: {path} cannot be built: {_first_line(cause)}{hint}")


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no text'])[0]}"


def _shipped_keys(group: str) -> set[str]:
    """Keys of the group's options in conf/."""
    library = {"optimizer": "torch.optim.", "scheduler": "torch.optim.lr_scheduler.", "loader": "torch.utils.data."}
    own = "feedrate.trainer.schedule." if group == "scheduler" else f"feedrate.{group}."
    schemas = [schema for path, schema in SHIPPED.items() if path.startswith((own, library.get(group, own)))]
    return {key for schema in schemas for key in common_keys(schema)}


def _listed(group: str, keys: Collection[str]) -> str:
    return ", ".join(f"{group}.{key}" for key in keys)


def _them(keys: Collection[str]) -> str:
    return "it" if len(keys) == 1 else "them"
