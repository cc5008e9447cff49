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
LENGTH = ("total_steps", "_schedule_phases", "total_iters", "T_max")  # attributes of torch's schedulers


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
    """A scheduler that is stepped after each optimizer step or each epoch, as `scheduler.interval` says.

    The learning rate is constant where `node` is None.
    """

    def __init__(self, node: Mapping[str, Any] | None, optimizer: Optimizer, total_steps: int, max_epochs: int) -> None:
        self._scheduler: LRScheduler | ReduceLROnPlateau | None = None
        self._interval = str((node or {}).get("interval", "epoch"))
        self._length = total_steps if self._interval == "step" else max_epochs
        self._optimizer, self._highest, self._warned = optimizer, 0.0, False
        if node is None:
            return
        if any("lr" not in group for group in optimizer.param_groups):
            raise UserError(f"scheduler: {type(optimizer).__name__} has no learning rate to change; set scheduler=none")
        injected = {"optimizer": optimizer, "total_steps": self._length}
        if node["_target_"] != "torch.optim.lr_scheduler.OneCycleLR":  # it takes either total_steps or these
            injected |= {"steps_per_epoch": -(-total_steps // max_epochs), "epochs": max_epochs}
        self._scheduler = build(node, "scheduler", injected, common_keys(SchedulerConfig))
        self._check_rate()

    def step(self) -> None:
        """Call after an optimizer step."""
        if self._scheduler is not None and self._interval == "step":
            self._scheduler.step()
            self._check_rate()

    def epoch(self, validation_loss: float) -> None:
        """Call after an epoch's validation."""
        if self._scheduler is None or self._interval != "epoch":
            return
        if isinstance(self._scheduler, ReduceLROnPlateau):
            self._scheduler.step(validation_loss)
        else:
            self._scheduler.step()
        self._check_rate()

    def _check_rate(self) -> None:
        """Warns once if the learning rate has fallen to almost nothing before the last hundredth of the schedule."""
        rate, done = self._optimizer.param_groups[0]["lr"], getattr(self._scheduler, "last_epoch", 0)
        if self._warned or not isinstance(rate, (float, int)):  # reading a tensor would wait for the device
            return
        self._highest = max(self._highest, rate)
        if rate < HARDLY * self._highest and done < 0.99 * self._length:
            self._warned = True
            log.warning(
                "note: the learning rate has fallen from %.3g to %.3g after %s %d of %d, so hardly anything is "
                "learned; see scheduler.interval", self._highest, rate, self._interval, done, self._length,
            )  # fmt: skip

    def advance(self, steps: int, epochs: int) -> None:
        """Steps a new schedule to where a run is; one that follows the validation loss starts from its beginning."""
        if self._scheduler is None or isinstance(self._scheduler, ReduceLROnPlateau):
            return
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")  # no optimizer step was left out
            for _ in range(steps if self._interval == "step" else epochs):
                self._scheduler.step()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes a saved state; the schedule's length stays the present one."""
        if self._scheduler is not None and state:
            length = {key: vars(self._scheduler)[key] for key in LENGTH if key in vars(self._scheduler)}
            self._scheduler.load_state_dict({**state, **length})

    def state_dict(self) -> dict[str, Any]:
        """The scheduler's state, empty without one."""
        return self._scheduler.state_dict() if self._scheduler is not None else {}
