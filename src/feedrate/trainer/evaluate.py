"""Passes over a partition without training: validation, evaluation with the worst samples, predictions by ID."""

from __future__ import annotations

import heapq
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from feedrate.dataset import list_IDs
from feedrate.dataset.labels import Targets
from feedrate.loader import Batch, ToDevice
from feedrate.task.task import Meter, Task
from feedrate.trainer.forward import Forward, cause_of
from feedrate.trainer.guard import check_samples

log = logging.getLogger(__name__)


@torch.no_grad()
def outputs_of(
    forward: Forward, loader: Any, started: Callable[[], None] = lambda: None
) -> Iterator[tuple[Batch, Tensor]]:
    """Each batch with the outputs ((B, num_outputs) float32, on the device) of the model in evaluation mode.

    `started` is called once the loader's workers have started.
    """
    forward.model.eval()
    try:
        batches = iter(ToDevice(loader, forward.device, None, forward.check(loader)))
        started()
        for batch in batches:
            yield batch, forward(batch.X).float()
    except RuntimeError as error:
        if (cause := cause_of(error)) is None:
            raise
        raise cause from error


def validate(forward: Forward, loader: Any, task: Task, started: Callable[[], None]) -> Meter:
    """The partition's metrics (`started`: see `outputs_of`); SampleError where a sample makes the loss not finite."""
    meter, losses = task.meter(forward.device), []
    for batch, outputs in outputs_of(forward, loader, started):
        loss = task.loss(outputs, batch.y)
        meter.update(loss, outputs, batch.y)
        losses.append((batch.info, loss))
    if not math.isfinite(meter.metrics().get("loss", 0.0)):
        for info, loss in losses:
            if not loss.isfinite():
                check_samples(loader, info)
        log.warning("note: the validation loss is not finite; this epoch cannot be the best")
    return meter


def predictions(forward: Forward, loader: Any, targets: Targets) -> Iterator[dict[str, Any]]:
    """ID and prediction of each sample, as rows of a table."""
    for IDs, _, outputs in _with_IDs(forward, loader):
        for ID, row in zip(IDs, rows_of(outputs, targets), strict=True):
            yield {"id": ID, **row}


def _with_IDs(forward: Forward, loader: Any) -> Iterator[tuple[list[str], Batch, Tensor]]:
    """As `outputs_of`, with the IDs of each batch; the loader's order must be its dataset's."""
    known, at = list_IDs(loader.dataset), 0
    for batch, outputs in outputs_of(forward, loader):
        here = range(at, at + len(batch.X))
        at += len(batch.X)
        yield loader.IDs(batch.info) or [str(i) if known is None else known[i] for i in here], batch, outputs


@dataclass(frozen=True)
class Sample:
    """One sample with its loss."""

    ID: str
    loss: float
    row: Mapping[str, Any]  # label and prediction, as columns of a table


@dataclass(frozen=True)
class Evaluation:
    """Results of one partition."""

    meter: Meter
    worst: list[Sample]  # samples with the largest loss, the largest first; NaN counts as infinite


def evaluate(forward: Forward, loader: Any, task: Task, worst: int) -> Evaluation:
    """Metrics of the loader's partition, and its `worst` samples."""
    meter = task.meter(forward.device)
    kept: list[Sample] = []
    for IDs, batch, outputs in _with_IDs(forward, loader):
        meter.update(task.loss(outputs, batch.y), outputs, batch.y)
        if worst:
            kept = heapq.nlargest(worst, [*kept, *_worst(worst, IDs, batch, outputs, task)], key=lambda s: s.loss)
    return Evaluation(meter, kept)


def _worst(count: int, IDs: list[str], batch: Batch, outputs: Tensor, task: Task) -> list[Sample]:
    """The `count` samples of a batch with the largest loss; of equal losses the first."""
    losses: Tensor = torch.vmap(lambda one, label: task.loss(one[None], label[None]))(outputs, batch.y)
    losses = losses.nan_to_num(nan=math.inf, posinf=math.inf)
    worst = losses.argsort(descending=True, stable=True)[:count].tolist()
    rows = rows_of(outputs[worst], task.targets)
    return [
        Sample(IDs[i], float(losses[i]), {**_row("label", batch.y[i].flatten().tolist(), task.targets), **row})
        for i, row in zip(worst, rows, strict=True)
    ]


def rows_of(outputs: Tensor, targets: Targets) -> list[dict[str, Any]]:
    """For each of B samples `prediction` and `probability` of a class, or `prediction` (`prediction_0`, ...)."""
    if targets.task == "classification":
        probability, index = outputs.softmax(dim=1).max(dim=1)
        return [
            {**_row("prediction", [i], targets), "probability": p}
            for i, p in zip(index.tolist(), probability.tolist(), strict=True)
        ]
    return [_row("prediction", values, targets) for values in outputs.tolist()]


def _row(name: str, values: list[Any], targets: Targets) -> dict[str, Any]:
    """One class by its name in the labels (its index where there is none), one number, or several."""
    if targets.task == "classification":
        known, index = targets.classes or (), int(values[0])
        return {name: known[index] if index < len(known) else index}
    return {name: values[0]} if len(values) == 1 else {f"{name}_{i}": value for i, value in enumerate(values)}
