"""The state of a run: all that a checkpoint must hold for the run to continue bit for bit."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from feedrate.dataset import Data
from feedrate.dataset.labels import Targets
from feedrate.loader import BatchInfo
from feedrate.task.task import Meter, Task
from feedrate.trainer import checkpoint
from feedrate.trainer.assemble import load_weights, zero_momentum
from feedrate.trainer.schedule import Schedule

log = logging.getLogger("feedrate")


@dataclass
class Result:
    """Results of a run."""

    metrics: dict[str, float] = field(default_factory=dict)  # by name, of the last epoch
    history: list[dict[str, float]] = field(default_factory=list)  # metrics of every epoch
    best_epoch: int = 0  # from 0, the one with the lowest validation loss
    best: dict[str, float] = field(default_factory=dict)  # its metrics
    confusion: list[list[int]] | None = None  # of its validation, rows are true classes; None for regression
    per_class: list[dict[str, Any]] | None = None  # samples and accuracy of each class, of its validation
    stopped: str = ""  # why training ended before max_epochs
    pruned: bool = False  # whether a search ended it

    def add(self, epoch: int, metrics: dict[str, float], validation: Meter) -> None:
        """Adds a finished epoch."""
        self.metrics = metrics
        self.history.append(metrics)
        if not self.best or is_lower(metrics["validation/loss"], self.best["validation/loss"]):
            self.best_epoch, self.best = epoch, metrics
            self.confusion, self.per_class = validation.confusion(), validation.per_class()

    def best_figures(self) -> dict[str, float]:
        """The validation metrics of the best epoch as `best/...`; `best/epoch` is counted from 1."""
        validated = {k.replace("validation/", "best/"): v for k, v in self.best.items() if k.startswith("validation/")}
        return {**validated, "best/epoch": self.best_epoch + 1}


def is_lower(loss: float, best: float) -> bool:
    """Whether a loss is better than the best one; a loss that is not finite never is."""
    return math.isfinite(loss) and not best <= loss


class RunState:
    """The position of a run, and everything that changes while it trains.

    The loader is the training partition's; a TorchLoader has no position within an epoch (its `state_dict` is None).
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        scaler: torch.amp.GradScaler,
        loader: Any,
        data: Data,
        task: Task,
        device: torch.device,
    ) -> None:
        self.device = device
        self.model, self.optimizer, self.schedule, self.scaler = model, optimizer, schedule, scaler
        self._loader, self._data, self._task = loader, data, task
        self.epoch, self.phase = 0, "training"  # of the epoch: 'training', 'validation' or 'done'
        self.batches, self.step = 0, 0  # trained on in this epoch; optimizer steps so far
        self.meter = task.meter(device)  # sums over the epoch's batches
        self.last: BatchInfo | None = None  # of the last batch trained on in this epoch
        self.position: dict[str, Any] | None = None  # the loader's while there is no such batch
        self.random: dict[str, Any] | None = None  # for the next checkpoint; None: the generators' of the moment
        self.result = Result()

    def next_epoch(self) -> None:
        """Starts the next epoch with an empty meter."""
        self.position, self.last = self._loader_state(), None
        self.epoch, self.phase, self.batches = self.epoch + 1, "training", 0
        self.meter = self._task.meter(self.device)

    @property
    def within_epoch(self) -> bool:
        """Whether the epoch has samples left to train on, as after `trainer.max_steps` has ended it."""
        place = self._loader_state()
        return place is not None and bool(place["position"] < self._loader.end)

    def begin_training(self, last: bool) -> None:
        """Sets the loader to this epoch's first batch, or the rest of it; after the last epoch none is prefetched."""
        self._loader.set_epoch(self.epoch, then=None if last else self.epoch + 1)
        self.position = self._loader.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": self.random or checkpoint.random_state(self.device),
            "loader": self._loader_state(),
            "epoch": self.epoch,
            "phase": self.phase,
            "batches": self.batches,
            "meter": self.meter.state_dict(),
            "step": self.step,
            "result": asdict(self.result),
            "data_digest": self._data.digest,
            "data": facts_of(self._data),
        }

    def load_state_dict(self, state: dict[str, Any], optimizer: bool = True) -> None:
        """Takes a state of `state_dict`, except the loader's part; the random generators are set by `Trainer.fit`.

        Without `optimizer` the present optimizer and schedule stay, the latter advanced to the state's step.
        """
        load_weights(self.model, state["model"])
        if optimizer:
            self.optimizer.load_state_dict(_with_present_kernels(self.optimizer, state["optimizer"]))
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
        elif self.batches and state["loader"] is not None:
            self.phase = "training" if self.within_epoch else "validation"
        elif self.batches and self.phase == "training":
            log.info("note: this loader has no position within an epoch; the interrupted epoch is started again")
            self.batches, self.meter = 0, self._task.meter(self.device)

    def _loader_state(self) -> dict[str, Any] | None:
        return self.position if self.last is None else self._loader.state_dict(self.last)


def _with_present_kernels(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's saved state, with the present one's choice of kernels (fused, foreach, capturable)."""
    groups = [
        {**saved, **{key: present[key] for key in ("fused", "foreach", "capturable") if key in present}}
        for saved, present in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    return {**state, "param_groups": groups}


def facts_of(data: Data) -> dict[str, Any]:
    """What a model must know of its data, as plain values for a checkpoint: predictions then need no training data."""
    facts = {name: value for name, value in vars(data).items() if name != "partition"}
    return {**facts, "targets": vars(data.targets)}


def data_of(facts: Mapping[str, Any]) -> Data:
    """The inverse of `facts_of`: data without samples."""
    return Data(**{**facts, "partition": {}, "targets": Targets(**facts["targets"])})
