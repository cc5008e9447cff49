"""What a run is at one instant: all that a checkpoint must hold for the run to go on bit for bit.

How a state comes about is the loop's affair; how it gets to the disk is checkpoint.py.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from feedrate.dataset import Data
from feedrate.loader import BatchInfo
from feedrate.task.task import Meter
from feedrate.trainer import checkpoint
from feedrate.trainer.assemble import zero_momentum
from feedrate.trainer.schedule import Schedule
from feedrate.trainer.unlabelled import facts_of

log = logging.getLogger("feedrate")


@dataclass
class Result:
    """What came of a run.

    Attributes:
        metrics: by name, of the last epoch.
        history: metrics of every epoch.
        best_epoch: epoch (from 0) with the lowest validation loss.
        best: its metrics.
        confusion: rows are true classes; of the best epoch, None for regression.
        per_class: samples and accuracy of each class in the validation partition, of the best epoch.
        stopped: why training ended before max_epochs, or an empty text.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best: dict[str, float] = field(default_factory=dict)
    confusion: list[list[int]] | None = None
    per_class: list[dict[str, Any]] | None = None
    stopped: str = ""

    def best_figures(self) -> dict[str, float]:
        """What validation measured in the best epoch, as metrics of their own; `best/epoch` is counted from 1."""
        validated = {k.replace("validation/", "best/"): v for k, v in self.best.items() if k.startswith("validation/")}
        return {**validated, "best/epoch": self.best_epoch + 1}


class RunState:
    """Where a run is, and what it has become by then.

    Args:
        loader: of the training partition; the `state_dict` of a TorchLoader is None, as it has no position in an epoch.
        new_meter: makes an empty account of one epoch.
        device: that the run is on.

    Attributes:
        epoch: from 0.
        phase: of the epoch: 'training', 'validation' or 'done'.
        batches: that were trained on in this epoch.
        step: optimizer steps so far.
        meter: sums over the epoch's batches.
        last: batch info of the last batch that was trained on in this epoch.
        position: the loader's while there is no such batch, None from one that has no position.
        cut: of an epoch that `trainer.max_steps` ends before its last batch: schedule and random generators before its
            validation, from which a run with more steps goes on in that epoch; None otherwise.
        random: states of the random generators that a checkpoint is to hold; None: those of the moment.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        scaler: torch.amp.GradScaler,
        loader: Any,
        data: Data,
        new_meter: Callable[[], Meter],
        device: torch.device,
    ) -> None:
        self.device = device
        self.model, self.optimizer, self.schedule, self.scaler = model, optimizer, schedule, scaler
        self._loader, self._data, self._new_meter = loader, data, new_meter
        self.epoch, self.phase, self.batches, self.step = 0, "training", 0, 0
        self.meter = new_meter()
        self.last: BatchInfo | None = None
        self.position: dict[str, Any] | None = None
        self.cut: dict[str, Any] | None = None
        self.random: dict[str, Any] | checkpoint.Generators | None = None
        self.result = Result()

    def next_epoch(self) -> None:
        self.position, self.last, self.cut = self._place_of_loader(), None, None
        self.epoch, self.phase, self.batches = self.epoch + 1, "training", 0
        self.meter = self._new_meter()

    def keep_cut(self) -> None:
        """To be called before the schedule hears of the epoch's validation."""
        place = self._place_of_loader()
        if place is not None and place["position"] < self._loader.end:
            self.cut = {"schedule": copy.deepcopy(self.schedule.state_dict()), "random": self.random_state()}

    def keep_random(self) -> None:
        """Whatever is drawn from now on, a checkpoint holds the generators as they are now."""
        self.random = checkpoint.Generators.now(self.device)

    def random_state(self) -> dict[str, Any]:
        """The generators as a checkpoint is to hold them."""
        if self.random is None or isinstance(self.random, checkpoint.Generators):
            return (self.random or checkpoint.Generators.now(self.device)).plain()
        return self.random

    def begin_training(self, last: bool) -> None:
        """To the loader's first batch of this epoch, or of the rest of it; after the last one none is made ahead."""
        self._loader.set_epoch(self.epoch, then=None if last else self.epoch + 1)
        self.position = self._loader.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """All that decides how the run goes on, as tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": self.random_state(),
            "loader": self._place_of_loader(),
            "epoch": self.epoch,
            "phase": self.phase,
            "cut": self.cut,
            "batches": self.batches,
            "meter": self.meter.state_dict(),
            "step": self.step,
            "result": asdict(self.result),
            "data_digest": self._data.digest,
            "data": facts_of(self._data),
        }

    def load_state_dict(self, state: dict[str, Any], optimizer: bool = True) -> None:
        """Takes up a state of `state_dict`, but for the random generators' and the loader's, which takes its own.

        Args:
            optimizer: False: optimizer and schedule begin anew, the schedule at the step where the state is.
        """
        self.model.load_state_dict(state["model"])
        if optimizer:
            self.optimizer.load_state_dict(_computed_as(self.optimizer, state["optimizer"]))
            zero_momentum(self.optimizer)
            self.schedule.load_state_dict(state["schedule"])
        else:
            self.schedule.advance(int(state["step"]), len(state["result"]["history"]))
        if state["scaler"]:  # empty in a run that had none
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.result = int(state["step"]), Result(**state["result"])
        self.epoch, self.phase, self.batches = int(state["epoch"]), str(state["phase"]), int(state["batches"])
        self.meter.load_state_dict(state["meter"])
        self.position, self.random = state["loader"], state["random"]
        if self.phase == "done":
            self.next_epoch()
        elif self.batches and state["loader"] is not None:  # what is left to train is told by the position
            self.phase = "validation" if state["loader"]["position"] >= self._loader.end else "training"
        elif self.batches and self.phase == "training":
            log.info("note: there is no position in the order of the epoch that was interrupted: it begins anew")
            self.batches, self.meter = 0, self._new_meter()

    def _place_of_loader(self) -> dict[str, Any] | None:
        return self.position if self.last is None else self._loader.state_dict(self.last)

    def about(self) -> dict[str, Any]:
        """What a person wants to know of a checkpoint; epochs are counted from 1."""
        return {
            "epoch": self.epoch + 1,
            **{name: getattr(self, name) for name in ("phase", "batches", "step")},
            "data_digest": self._data.digest,
            "position": (self._place_of_loader() or {}).get("position"),
            "metrics": self.result.metrics,
        }


def within_epoch(state: dict[str, Any], max_steps: int | None) -> dict[str, Any]:
    """The checkpoint of a run that `trainer.max_steps` stopped within an epoch, as it was before that epoch's
    validation; any other one, or one after which `max_steps` leaves no step, as it is.
    """
    cut = state.get("cut")  # older checkpoints have none
    if state["phase"] != "done" or not cut or (max_steps is not None and int(state["step"]) >= max_steps):
        return state
    history = state["result"]["history"][:-1]
    result = {**state["result"], "history": history, "metrics": history[-1] if history else {}, "stopped": ""}
    return {**state, **cut, "phase": "training", "cut": None, "result": result}


def _computed_as(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """The state of an optimizer, whose steps are computed as the present one computes them, on its device."""
    groups = [
        {**saved, **{key: present[key] for key in ("fused", "foreach", "capturable") if key in present}}
        for saved, present in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    return {**state, "param_groups": groups}
