"""Learning-rate schedules: any scheduler of torch, and a cosine with warm-up."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from feedrate.cli.targets import build
from feedrate.config import SchedulerConfig, common_keys
from feedrate.errors import UserError

log = logging.getLogger("feedrate")
HARDLY = 1e-6  # share of the highest learning rate so far below which hardly anything is learned
_LENGTH = ("total_steps", "_schedule_phases", "total_iters", "T_max")  # attributes of torch's schedulers


def cosine(optimizer: Optimizer, total_steps: int, warmup: float = 0.05, final: float = 0.0) -> LRScheduler:
    """Rises linearly over the first `warmup` share of the steps, then falls as half a cosine to `final` times the rate.

    Source of the cosine: I. Loshchilov, F. Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017.
    """
    rising = round(warmup * total_steps)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        progress = (step - rising) / max(1, total_steps - rising)
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return LambdaLR(optimizer, factor)


class Schedule:
    """One scheduler, stepped after each optimizer step or each epoch, as its configuration says.

    Raises:
        UserError: the scheduler cannot be built, or the optimizer has no learning rate.
    """

    def __init__(self, node: Mapping[str, Any] | None, optimizer: Optimizer, total_steps: int, max_epochs: int) -> None:
        self._scheduler: LRScheduler | ReduceLROnPlateau | None = None
        self._interval = "epoch"
        self._optimizer, self._highest, self._told = optimizer, [0.0] * len(optimizer.param_groups), False
        self._node = node or {}
        if node is None:
            return
        if any("lr" not in group for group in optimizer.param_groups):
            raise UserError(
                f"scheduler: {node['_target_']} changes the optimizer's learning rate, and {type(optimizer).__name__} "
                "has none (no `lr` in its parameter groups); set scheduler=none"
            )
        self._interval = str(node.get("interval", "epoch"))
        steps_per_epoch = -(-total_steps // max_epochs)
        self._length = total_steps if self._interval == "step" else max_epochs
        injected = {
            "optimizer": optimizer,
            "total_steps": self._length,
            "steps_per_epoch": steps_per_epoch,
            "epochs": max_epochs,
        }
        if node["_target_"] == "torch.optim.lr_scheduler.OneCycleLR":
            del injected["steps_per_epoch"], injected["epochs"]  # it wants either these or total_steps
        self._scheduler = build(node, "scheduler", injected, common_keys(SchedulerConfig))
        self._look()

    def step(self) -> None:
        """After an optimizer step."""
        if self._scheduler is not None and self._interval == "step":
            self._scheduler.step()
            self._look()

    def epoch(self, validation_loss: float) -> None:
        """After an epoch's validation."""
        if self._scheduler is None or self._interval != "epoch":
            return
        if isinstance(self._scheduler, ReduceLROnPlateau):
            self._scheduler.step(validation_loss)
        else:
            self._scheduler.step()
        self._look()

    def _look(self) -> None:
        """Warns once of a learning rate that has fallen to almost nothing while there is much to come.

        In its last hundredth a schedule may end at 0, as a cosine does.
        """
        for number, group in enumerate(self._optimizer.param_groups):
            rate = group["lr"]
            if self._told or not isinstance(rate, (float, int)):  # to look at a tensor would wait for the device
                return
            self._highest[number] = highest = max(self._highest[number], rate)
            done = getattr(self._scheduler, "last_epoch", 0)
            if rate < HARDLY * highest and done < 0.99 * self._length:
                self._told = True
                log.warning(
                    "note: the learning rate has fallen from %.3g to %.3g after %s %d of %d, so hardly anything is "
                    "learned from now on; %s changes it after each %s (scheduler.interval)",
                    highest, rate, self._interval, done, self._length, type(self._scheduler).__name__, self._interval,
                )  # fmt: skip

    def kept(self, state: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Settings that a state would bring back, by key: the state's value and the present one, where they differ."""
        ours = vars(self._scheduler) if self._scheduler is not None else {}
        pairs = {key: (state[key], ours[key]) for key in self._node if key in state and key in ours}
        return {f"scheduler.{key}": pair for key, pair in pairs.items() if pair[0] != pair[1] and key not in _LENGTH}

    def advance(self, steps: int, epochs: int) -> None:
        """To where a run is after so many steps and epochs, as if it had been scheduled so from its start.

        What depends on the validation loss begins there.
        """
        if self._scheduler is None or isinstance(self._scheduler, ReduceLROnPlateau):
            return
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")  # no optimizer step was left out
            for _ in range(steps if self._interval == "step" else epochs):
                self._scheduler.step()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state; over how many steps the schedule stretches is as it was built now."""
        if self._scheduler is not None and state:
            length = {key: vars(self._scheduler)[key] for key in _LENGTH if key in vars(self._scheduler)}
            self._scheduler.load_state_dict({**state, **length})

    def state_dict(self) -> dict[str, Any]:
        return self._scheduler.state_dict() if self._scheduler is not None else {}
