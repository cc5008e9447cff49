"""Builds model and optimizer from their configuration and the data's shapes."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from feedrate.cli.targets import build, locate
from feedrate.config import TrainerConfig
from feedrate.dataset import Data
from feedrate.errors import UserError
from feedrate.system.device import has_streams, make_current
from feedrate.system.lazy_dynamo import postpone_dynamo


def build_model(node: Mapping[str, Any], data: Data, device: torch.device, channels_last: bool = False) -> nn.Module:
    """The model on its device; its constructor gets `sample_shape` and `num_outputs` if it has such parameters."""
    make_current(device)
    model = build(node, "model", {"sample_shape": tuple(data.sample_shape), "num_outputs": data.targets.num_outputs})
    if not isinstance(model, nn.Module):
        raise UserError(f"model._target_={node['_target_']}: builds a {type(model).__name__}, not a torch.nn.Module")
    model.to(device)
    if channels_last:
        for parameter in model.parameters():  # of Conv2d only: Module.to() would fail on a Conv3d
            if parameter.dim() == 4:
                parameter.data = parameter.data.to(memory_format=torch.channels_last)
    return model


def load_weights(model: nn.Module, weights: Mapping[str, Any]) -> None:
    """Loads a checkpoint's weights."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        reason = (lines[1:] or lines)[0]
        raise UserError(f"model: the checkpoint's weights do not fit {type(model).__name__}: {reason}") from error


def build_optimizer(node: Mapping[str, Any], model: nn.Module, device: torch.device) -> torch.optim.Optimizer:
    """The optimizer of the model's parameters.

    On an accelerator with streams it is fused where torch can, unless `fused` is set: one kernel per step, which can
    skip the step when a loss is not finite, without a host synchronisation.
    """
    postpone_dynamo()
    parameters = [p for p in model.parameters() if p.requires_grad]
    if any(map(nn.parameter.is_lazy, parameters)):
        raise UserError(
            f"model: {type(model).__name__} has parameters without a shape (LazyLinear and the like); "
            "let its constructor take sample_shape, and use layers with sizes"
        )
    if not parameters:
        raise UserError(f"model: {type(model).__name__} has no parameter that requires a gradient; nothing to train")
    injected: dict[str, Any] = {"params": parameters}
    target = locate(str(node["_target_"]), "optimizer")
    optimizer = None
    if node.get("fused") in (None, "auto"):
        node = {key: value for key, value in node.items() if key != "fused"}
        if has_streams(device) and _can_be_fused(target, node, model, parameters):
            with contextlib.suppress(UserError):  # the class has no fused form for this device
                optimizer = build(node, "optimizer", {**injected, "fused": True})
    if optimizer is None:
        optimizer = build(node, "optimizer", injected)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(f"optimizer._target_={node['_target_']}: builds a {type(optimizer).__name__}, not an Optimizer")
    if needed := [p.name for p in inspect.signature(optimizer.step).parameters.values() if _is_required(p)]:
        raise UserError(
            f"optimizer._target_={node['_target_']}: its step() needs {', '.join(needed)}, which training does not "
            "give; take another optimizer, such as optimizer=adamw"
        )
    zero_momentum(optimizer)
    return optimizer


def _can_be_fused(target: Any, node: Mapping[str, Any], model: nn.Module, parameters: list[nn.Parameter]) -> bool:
    # these have a fused form on every accelerator; of another class that may be known only at its first step
    able = isinstance(target, type) and issubclass(target, (torch.optim.Adam, torch.optim.SGD))
    sparse = any(getattr(module, "sparse", False) for module in model.modules())  # an nn.Embedding's gradients
    # with dampening torch treats the first step differently, which zero_momentum would hide
    return able and not sparse and not node.get("dampening") and all(p.is_floating_point() for p in parameters)


def _is_required(parameter: inspect.Parameter) -> bool:
    variable = (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and parameter.kind not in variable


def zero_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Gives fused SGD momentum buffers of zeros: torch leaves them uninitialised where the first step is skipped."""
    for group in optimizer.param_groups if isinstance(optimizer, torch.optim.SGD) else ():
        if group["fused"] and group["momentum"] and not group["dampening"]:
            for parameter in group["params"]:
                if optimizer.state[parameter].get("momentum_buffer") is None:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def total_steps(config: TrainerConfig, loader: Any, state: Mapping[str, Any] | None = None) -> int:
    """Optimizer steps of the whole run; of a resumed one those made until its checkpoint's `state`, and the rest."""
    whole = -(-len(loader) // config.accumulate)
    steps = config.max_epochs * whole
    if state:
        place, batches = state["loader"], len(loader) if state["phase"] == "training" else 0
        if place and state["phase"] != "done":
            samples = max(0, loader.end - place["position"])
            batches = math.ceil(samples / ((loader.batch_size or 1) * loader.world_size))
        rest = -(-batches // config.accumulate)
        steps = int(state["step"]) + rest + (config.max_epochs - int(state["epoch"]) - 1) * whole
    return max(1, min(steps, config.max_steps) if config.max_steps is not None else steps)
