"""Losses and metrics agree with scikit-learn's, whatever the batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics

from feedrate.dataset.labels import Targets
from feedrate.errors import UserError
from feedrate.task.task import Meter, Task

CPU = torch.device("cpu")


def fill(task: Task, outputs: torch.Tensor, y: torch.Tensor, batch: int) -> Meter:
    meter = task.meter(CPU)
    for start in range(0, len(y), batch):
        part = slice(start, start + batch)
        meter.update(task.loss(outputs[part], y[part]), outputs[part], y[part])
    return meter


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_classification_metrics_equal_scikit_learns(batch):
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(100, 12, generator=generator)
    y = torch.randint(12, (100,), generator=generator)
    meter = fill(Task(Targets("classification", tuple(range(12)), 12), top5=True), outputs, y, batch)
    found, probability = meter.metrics(), outputs.softmax(1).numpy()
    predicted = outputs.argmax(1)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(y, predicted))
    assert found["top5_accuracy"] == pytest.approx(metrics.top_k_accuracy_score(y, probability, k=5, labels=range(12)))
    assert found["loss"] == pytest.approx(metrics.log_loss(y, probability, labels=range(12)), rel=1e-5)
    assert np.array_equal(meter.confusion(), metrics.confusion_matrix(y, predicted, labels=range(12)))
    assert (
        fill(Task(Targets("classification", tuple(range(12)), 12), top5=True), outputs, y[:, None], batch).metrics()
        == found
    )
    for row in meter.per_class():
        mask = y == row["class"]
        assert row["samples"] == int(mask.sum())
        if row["samples"]:
            assert row["accuracy"] == pytest.approx(float((predicted[mask] == y[mask]).float().mean()))


@pytest.mark.parametrize("length", [1, 3])
def test_regression_metrics_equal_scikit_learns(length):
    generator = torch.Generator().manual_seed(0)
    outputs, y = torch.randn(50, length, generator=generator), torch.randn(50, length, generator=generator)
    labels = y[:, 0] if length == 1 else y
    found = fill(Task(Targets("regression", None, length)), outputs, labels, 8).metrics()
    assert found["mae"] == pytest.approx(metrics.mean_absolute_error(y, outputs), rel=1e-5)
    assert found["rmse"] == pytest.approx(metrics.mean_squared_error(y, outputs) ** 0.5, rel=1e-5)


def test_very_many_classes_are_counted_without_a_confusion_matrix():
    task = Task(Targets("classification", None, 5000))
    outputs = torch.zeros(4, 5000)
    outputs[:, 3] = 1
    meter = fill(task, outputs, torch.tensor([3, 3, 0, 3]), 2)
    assert meter.metrics()["accuracy"] == 0.75
    assert meter.confusion() is None


def test_a_model_with_other_outputs_than_the_data_needs_is_named():
    with pytest.raises(
        UserError,
        match=r"returned shape \(4, 3\) for a batch of 4; needed is a tensor of shape \(4, 10\): one output per class",
    ):
        Task(Targets("classification", None, 10)).loss(torch.zeros(4, 3), torch.zeros(4))


@pytest.mark.parametrize("outputs", [(torch.zeros(4, 10), None), {"logits": torch.zeros(4, 10)}, None])
def test_a_model_that_returns_no_tensor_is_told_what_is_needed(outputs):
    kind = type(outputs).__name__
    rule = rf"model: returned a {kind} for a batch of 4; needed is a tensor of shape \(4, 10\)"
    with pytest.raises(UserError, match=rule):
        Task(Targets("classification", tuple(range(10)), 10)).loss(outputs, torch.zeros(4))
