"""What a configuration that comes back from MLflow or a checkpoint's folder may name, so that it runs no foreign code.

A configuration that the user writes on this machine may name anything: see targets.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from feedrate.config import SHIPPED
from feedrate.errors import UserError
from feedrate.targets import locate

_TORCH = ("torch.nn", "torch.optim", "torch.optim.lr_scheduler")


def check_targets(nodes: Mapping[str, Any], allow: Collection[str] = ()) -> None:
    """Looks at every `_target_`, nested ones too, before any is imported or built.

    Allowed are what conf/ ships, the models, datasets and loaders of feedrate, and the modules, optimizers and
    schedulers that stand in torch.nn, torch.optim and torch.optim.lr_scheduler. Hydra's own block list is no help:
    it lets torch.load, Path.unlink and open through.

    Args:
        nodes: configuration nodes by name, plain containers without interpolations.
        allow: further import paths, which the user vouches for.

    Raises:
        UserError: naming the first target that is not allowed, and the key that allows it.
    """
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
        if value not in SHIPPED and value not in allow and not _is_known(value):
            given = ",".join([*allow, value])
            raise UserError(
                f"{key}={value}: the run's configuration names code that Feedrate does not ship; "
                f"if you trust it, add allow=[{given}]"
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

    The kind is what counts: modules import others, so feedrate.trainer.provenance.subprocess.run is a path too.
    """
    module, _, name = path.rpartition(".")
    own = path.startswith("feedrate.")
    if any(not part.isidentifier() or part.startswith("_") for part in path.split(".")):
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
