"""What a trained model answers for each sample of a partition: metrics, the worst samples, predictions by ID.

Nothing is trained, drawn or recorded here.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from feedrate.dataset import list_IDs
from feedrate.dataset.labels import Targets
from feedrate.loader import Batch, ToDevice
from feedrate.task.task import Task
from feedrate.trainer.forward import Forward


@dataclass(frozen=True)
class Answers:
    """The model's outputs for one batch.

    Attributes:
        IDs: of its B samples.
        batch: as loaded, on the device.
        outputs: (B, num_outputs) float32, on the device.
    """

    IDs: list[str]
    batch: Batch
    outputs: Tensor


@torch.no_grad()
def answers(forward: Forward, loader: Any) -> Iterator[Answers]:
    """What a model in evaluation mode answers, batch by batch, in the loader's order, which must be its dataset's.

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
            yield Answers(IDs, batch, forward(batch.X).float())
    except RuntimeError as error:
        if (told := forward.explained(error)) is None:
            raise
        raise told from error


@dataclass(frozen=True)
class Sample:
    """One sample, its loss, and what was made of it.

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
    """What came of one partition.

    Attributes:
        metrics: loss, and accuracy (and top5_accuracy) or mae and rmse.
        confusion: rows are true classes; None for regression and for very many classes.
        per_class: class, samples and accuracy of each class, None where confusion is.
        worst: samples with the largest loss, the largest first; a loss that is no number counts as infinite.
        pairs: (true, predicted) of each sample where a single number is predicted, else None.
    """

    samples: int
    metrics: dict[str, float]
    confusion: list[list[int]] | None
    per_class: list[dict[str, Any]] | None
    worst: list[Sample]
    pairs: tuple[list[float], list[float]] | None


def evaluate(forward: Forward, loader: Any, task: Task, worst: int) -> Evaluation:
    """One pass over the loader's partition.

    Args:
        worst: how many of the worst samples are kept.
    """
    meter = task.meter(forward.device)
    single = task.targets.task == "regression" and task.targets.num_outputs == 1
    true: list[float] = []
    predicted: list[float] = []
    kept: list[tuple[float, int, Sample]] = []  # a heap with the best of the worst on top
    for found in answers(forward, loader):
        outputs, y = found.outputs, found.batch.y
        meter.update(task.loss(outputs, y), outputs, y)
        if single:
            true += y.flatten().tolist()
            predicted += outputs.flatten().tolist()
        if worst:
            _keep(kept, worst, found, task, meter.samples - len(y))
    ordered = [sample for _, _, sample in sorted(kept, key=lambda item: item[:2], reverse=True)]
    pairs = (true, predicted) if single else None
    return Evaluation(meter.samples, meter.metrics(), meter.confusion(), meter.per_class(), ordered, pairs)


def _keep(kept: list[tuple[float, int, Sample]], count: int, found: Answers, task: Task, start: int) -> None:
    outputs, batch = found.outputs, found.batch
    losses = losses_of(task, outputs, batch.y).tolist()
    worst = heapq.nlargest(count, range(len(losses)), key=lambda index: _size(losses[index]))
    worst = [i for i in worst if len(kept) < count or _size(losses[i]) > kept[0][0]]
    if not worst:
        return
    rows = rows_of(outputs[worst], task.targets)
    for index, row in zip(worst, rows, strict=True):
        item = _size(losses[index]), -(start + index)  # of equal ones the first in the partition
        if len(kept) == count and item[0] <= kept[0][0]:
            continue
        columns = {**label_of(batch.y[index], task.targets), **row}
        sample = Sample(found.IDs[index], losses[index], columns, batch.X[index].cpu())
        (heapq.heappush if len(kept) < count else heapq.heapreplace)(kept, (*item, sample))


def losses_of(task: Task, outputs: Tensor, y: Tensor) -> Tensor:
    """(B,) losses of single samples, whose mean is the batch's loss."""
    losses: Tensor = torch.vmap(lambda one, label: task.loss(one[None], label[None]))(outputs, y)
    return losses


# ---------------------------------------------------------------------------------------------------------
# columns of a table
# ---------------------------------------------------------------------------------------------------------


def rows_of(outputs: Tensor, targets: Targets) -> list[dict[str, Any]]:
    """What the model says of each of B samples: `prediction` and `probability` of a class, or the numbers.

    Several numbers are called prediction_0, prediction_1, ...
    """
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
    """What the labels call a class; its index where they name none."""
    known = targets.classes or ()
    return known[index] if index < len(known) else index


def _numbers(name: str, values: list[float]) -> dict[str, float]:
    return {name: values[0]} if len(values) == 1 else {f"{name}_{i}": value for i, value in enumerate(values)}


def _size(loss: float) -> float:
    return math.inf if math.isnan(loss) else loss
