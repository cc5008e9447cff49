"""Passes over a partition without training: validation, evaluation with the worst samples, predictions by ID."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from feedrate.dataset import list_IDs
from feedrate.dataset.labels import Targets
from feedrate.loader import Batch, BatchInfo, ToDevice
from feedrate.task.task import Meter, Task
from feedrate.trainer.forward import Forward


@torch.no_grad()
def validate(
    forward: Forward, loader: Any, task: Task, started: Callable[[], None]
) -> tuple[Meter, list[tuple[Tensor, BatchInfo]]]:
    """Puts the model in evaluation mode and returns the partition's metrics, and each batch's loss and info.

    Args:
        started: called once the loader's workers have started.
    """
    forward.model.eval()
    meter = task.meter(forward.device)
    batches = iter(ToDevice(loader, forward.device, None, forward.check(loader)))
    started()
    losses: list[tuple[Tensor, BatchInfo]] = []
    for batch in batches:
        outputs = forward(batch.X)
        with forward.autocast():
            loss = task.loss(outputs, batch.y)
        meter.update(loss, outputs, batch.y)
        losses.append((loss, batch.info))  # not read here, since that waits for the device
    return meter, losses


@torch.no_grad()
def answers(forward: Forward, loader: Any) -> Iterator[tuple[list[str], Batch, Tensor]]:
    """IDs, batch and outputs ((B, num_outputs) float32, on the device) of a model in evaluation mode, batch by batch.

    The loader's order must be its dataset's.

    Raises:
        UserError: the model fails on a batch.
        SampleError: a sample cannot be used.
    """
    known, at = list_IDs(loader.dataset), 0
    try:
        for batch in ToDevice(loader, forward.device, None, forward.check(loader)):
            here = range(at, at + len(batch.X))
            IDs = loader.IDs(batch.info) or [str(i) if known is None else known[i] for i in here]
            at += len(batch.X)
            yield IDs, batch, forward(batch.X).float()
    except RuntimeError as error:
        if (cause := forward.explained(error)) is None:
            raise
        raise cause from error


@dataclass(frozen=True)
class Sample:
    """One sample with its loss.

    Attributes:
        row: label and prediction, as columns of a table.
        X: as loaded, on the host.
    """

    ID: str
    loss: float
    row: Mapping[str, Any]
    X: Tensor


@dataclass(frozen=True)
class Evaluation:
    """Results of one partition.

    Attributes:
        metrics: loss, and accuracy (and top5_accuracy) or mae and rmse.
        confusion: rows are true classes; None for regression and for very many classes.
        per_class: class, samples and accuracy of each class, None where confusion is.
        worst: samples with the largest loss, the largest first; NaN counts as infinite.
        pairs: (true, predicted) of each sample where a single number is predicted, else None.
    """

    samples: int
    metrics: dict[str, float]
    confusion: list[list[int]] | None
    per_class: list[dict[str, Any]] | None
    worst: list[Sample]
    pairs: tuple[list[float], list[float]] | None


def evaluate(forward: Forward, loader: Any, task: Task, worst: int) -> Evaluation:
    """Metrics of the loader's partition, and its `worst` samples."""
    meter = task.meter(forward.device)
    single = task.targets.task == "regression" and task.targets.num_outputs == 1
    true: list[float] = []
    predicted: list[float] = []
    kept: list[Sample] = []
    for IDs, batch, outputs in answers(forward, loader):
        y = batch.y
        meter.update(task.loss(outputs, y), outputs, y)
        if single:
            true += y.flatten().tolist()
            predicted += outputs.flatten().tolist()
        if worst:
            kept = _worst(kept, worst, IDs, batch, outputs, task)
    pairs = (true, predicted) if single else None
    return Evaluation(meter.samples, meter.metrics(), meter.confusion(), meter.per_class(), kept, pairs)


def _worst(kept: list[Sample], count: int, IDs: list[str], batch: Batch, outputs: Tensor, task: Task) -> list[Sample]:
    """The `count` worst of those kept and of a batch; of equal losses the first in the partition."""
    losses = losses_of(task, outputs, batch.y).tolist()
    least = _rank(kept[-1].loss) if len(kept) == count else -math.inf
    candidates = [i for i, loss in enumerate(losses) if _rank(loss) > least]
    worst = heapq.nlargest(count, candidates, key=lambda i: _rank(losses[i]))
    if not worst:
        return kept
    added = [
        Sample(IDs[i], losses[i], {**label_of(batch.y[i], task.targets), **row}, batch.X[i].cpu())
        for i, row in zip(worst, rows_of(outputs[worst], task.targets), strict=True)
    ]
    return heapq.nlargest(count, [*kept, *added], key=lambda sample: _rank(sample.loss))


def losses_of(task: Task, outputs: Tensor, y: Tensor) -> Tensor:
    """(B,) losses of single samples, whose mean is the batch's loss."""
    losses: Tensor = torch.vmap(lambda one, label: task.loss(one[None], label[None]))(outputs, y)
    return losses


def rows_of(outputs: Tensor, targets: Targets) -> list[dict[str, Any]]:
    """For each of B samples `prediction` and `probability` of a class, or `prediction` (`prediction_0`, ...)."""
    if targets.task == "classification":
        probability, index = outputs.softmax(dim=1).max(dim=1)
        return [
            {"prediction": class_name(targets, i), "probability": p}
            for i, p in zip(index.tolist(), probability.tolist(), strict=True)
        ]
    return [_numbers("prediction", values) for values in outputs.tolist()]


def label_of(y: Tensor, targets: Targets) -> dict[str, Any]:
    """The true class, number or numbers of a sample."""
    if targets.task == "classification":
        return {"label": class_name(targets, int(y))}
    return _numbers("label", y.flatten().tolist())


def class_name(targets: Targets, index: int) -> Any:
    """The class's name in the labels; its index where there is none."""
    known = targets.classes or ()
    return known[index] if index < len(known) else index


def _numbers(name: str, values: list[float]) -> dict[str, float]:
    return {name: values[0]} if len(values) == 1 else {f"{name}_{i}": value for i, value in enumerate(values)}


def _rank(loss: float) -> float:
    return math.inf if math.isnan(loss) else loss
