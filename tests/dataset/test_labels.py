"""The meaning of labels follows from their values, or from `dataset.task`, and a label that does not fit is named."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
import torch

from feedrate.dataset.labels import Targets, read_labels
from feedrate.errors import UserError


def read(train: list[Any], validation: list[Any] | None = None, task: str = "auto") -> tuple[Targets, list[Any]]:
    """Targets, and the labels of both partitions as lists."""
    labels = {"train": train, "validation": train if validation is None else validation}
    names = {p: [f"{p}-{i}" for i in range(len(values))] for p, values in labels.items()}
    targets, tensors = read_labels(labels, names, task)
    dtype = torch.int64 if targets.task == "classification" else torch.float32
    assert all(tensor.dtype == dtype for tensor in tensors.values())
    return targets, [tensors["train"].tolist(), tensors["validation"].tolist()]


@pytest.mark.parametrize(
    ("labels", "classes", "indices"),
    [
        ([3, 1, 3, 10], (1, 3, 10), [1, 0, 1, 2]),
        ([10, 2, -1], (-1, 2, 10), [2, 1, 0]),
        ([7, 7], (7,), [0, 0]),
        (["b", "a", "b"], ("a", "b"), [1, 0, 1]),
        ([True, False, True], (False, True), [1, 0, 1]),
        ([2.0, 0.0, 1.0], (0, 1, 2), [2, 0, 1]),
        ([2.0, 1, 2, 1.0], (1, 2), [1, 0, 1, 0]),
        ([2**70, 5, 2**70], (5, 2**70), [1, 0, 1]),
        ([1, "1", True, 1.0, "1"], (True, 1, "1"), [1, 2, 0, 1, 2]),
        (["", "ä", "\n"], ("", "\n", "ä"), [0, 2, 1]),
    ],
    ids=repr,
)
def test_scalars_are_classes_in_their_own_order(
    labels: list[Any], classes: tuple[Any, ...], indices: list[int]
) -> None:
    targets, (found, _) = read(labels)
    assert targets.task == "classification"
    assert targets.classes == classes
    assert [type(name) for name in targets.classes] == [type(name) for name in classes]
    assert targets.num_outputs == len(classes)
    assert targets.describe() == ("1 class" if len(classes) == 1 else f"{len(classes)} classes")
    assert found == indices


def test_classes_are_those_of_all_partitions() -> None:
    targets, (train, validation) = read(["b", "c", "b"], ["a", "c"])
    assert targets.classes == ("a", "b", "c")
    assert (train, validation) == ([1, 2, 1], [0, 2])


@pytest.mark.parametrize("labels", [[0.5, 1.0], [1, 2, 2.5], [-1e30, 1e-30]], ids=repr)
def test_numbers_of_which_one_has_a_fraction_are_quantities(labels: list[float]) -> None:
    targets, (found, _) = read(labels)
    assert (targets.task, targets.num_outputs, targets.classes) == ("regression", 1, None)
    assert targets.describe() == "a number to predict"
    assert found == torch.tensor(labels).tolist()


def test_one_fraction_in_any_partition_makes_all_quantities() -> None:
    assert read([1, 2, 3], [2.5])[0].task == "regression"


def test_lists_are_vectors() -> None:
    targets, (found, _) = read([[1, 2.5, 3], [4, 5, 6]])
    assert (targets.task, targets.num_outputs) == ("regression", 3)
    assert targets.describe() == "3 numbers to predict"
    assert found == [[1.0, 2.5, 3.0], [4.0, 5.0, 6.0]]
    assert read([[1], [2]], task="regression")[0].num_outputs == 1


@pytest.mark.parametrize(
    ("labels", "task", "classes", "found"),
    [
        ([[2], [0], [2]], "classification", (0, 2), [1, 0, 1]),
        ([[2.0], [0.0]], "classification", (0, 2), [1, 0]),
        ([[True], [False]], "classification", (False, True), [1, 0]),
        ([[0.5], [2]], "regression", None, [0.5, 2.0]),
    ],
    ids=repr,
)
def test_lists_of_one_number_are_that_number(labels: list[Any], task: str, classes: Any, found: list[Any]) -> None:
    targets, (train, _) = read(labels)
    assert (targets.task, targets.classes, train) == (task, classes, found)
    assert targets.num_outputs == (len(classes) if classes else 1)


def test_the_task_can_be_stated_either_way() -> None:
    targets, (found, _) = read([1, 5, 9], task="regression")
    assert (targets.task, targets.num_outputs, found) == ("regression", 1, [1.0, 5.0, 9.0])
    targets, (found, _) = read([0.5, 1.5, 0.5], task="classification")
    assert (targets.classes, found) == ((0.5, 1.5), [0, 1, 0])
    assert read([0.5, "rest"], task="classification")[0].classes == (0.5, "rest")


@pytest.mark.parametrize(
    ("label", "others", "task", "shown", "remedy"),
    [
        (None, [1, 2], "auto", "null", "number"),
        ({"x": 1}, [1, 2], "auto", '{"x": 1}', "number"),
        (datetime.date(2026, 1, 2), [1, 2], "auto", "2026-01-02", "number"),
        (float("nan"), [0.5, 2], "auto", "NaN", "finite"),
        (float("inf"), [0.5, 2], "auto", "Infinity", "finite"),
        (float("-inf"), [1, 2], "classification", "Infinity", "finite"),
        (float("nan"), ["a", "b"], "auto", "NaN", "finite"),
        (1e39, [0.5, 2], "auto", "1e+39", "at most 3.4e+38"),  # becomes infinite in float32
        (10**400, [0.5, 2], "auto", "1000", "at most 3.4e+38"),
        (10**60, [1, 2], "regression", "1000", "at most 3.4e+38"),
        ("n/a", [0.5, 2], "auto", '"n/a"', "dataset.task=classification"),
        (2.5, ["a", "b"], "auto", "2.5", "numbers with a fraction are mixed with others"),
        ("a", [1, 2], "regression", '"a"', "numbers"),
        (True, [1, 2], "regression", "true", "numbers"),
        ([1], [1, 2], "classification", "[1]", "one class"),
        ([1, 2], [[1], [2]], "auto", "[1, 2]", "a list of 1 numbers"),
        (7, [[1], [2]], "auto", "7", "a list of 1 numbers"),
        (["a"], [[1], [2]], "auto", '["a"]', "a list of 1 numbers"),
        ([None], [[1], [2]], "auto", "[null]", "a list of 1 numbers"),
        ([True], [[1], [2]], "auto", "[true]", "a list of 1 numbers"),
        ([float("nan")], [[1], [2]], "auto", "[NaN]", "finite"),
        ([[1]], [[1], [2]], "auto", "[[1]]", "a list of 1 numbers"),
        ([], [[], []], "auto", "[]", "at least one"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_label_that_does_not_fit_is_named_with_its_ID(
    label: Any, others: list[Any], task: str, shown: str, remedy: str
) -> None:
    with pytest.raises(UserError) as caught:
        read(others, [*others, label], task)
    message = str(caught.value)
    assert "'validation-2'" in message or label == []
    assert shown in message
    assert remedy in message
    assert len(message) < 300
    assert "\n" not in message


@pytest.mark.parametrize("others", [["a", "b"], [1, 2], [[1.0], [2.0, 3.0]]], ids=["texts", "numbers", "vectors"])
@pytest.mark.parametrize("label", ["\ud800", "cat \udcff"])
def test_a_text_that_is_no_valid_Unicode_is_refused_with_its_ID(label: str, others: list[Any]) -> None:
    with pytest.raises(UserError) as caught:
        read(others, [*others, label])
    escaped = label.encode(errors="backslashreplace").decode()
    assert str(caught.value) == (
        f"labels: ID 'validation-2' has the label \"{escaped}\"; it is no valid Unicode; rename the class"
    )
    str(caught.value).encode()  # it can be printed


def test_a_class_without_a_training_sample_is_noted() -> None:
    targets, _ = read([1, 2], [1, 3])
    (note,) = targets.notes
    assert "1 class without a training sample (3)" in note
    assert read([1, 2], [1])[0].notes == ()
    many = read([1, 2], list(range(10, 20)))[0].notes[0]
    assert "10 classes" in many
    assert "10, 11, 12, 13, 14, ..." in many


def test_a_text_among_numbers_is_noted_with_its_ID() -> None:
    targets, _ = read([0, 1, 0, "cat", 1], [0, 1])
    assert "1 of 7 are texts, the others are not: the first is that of ID 'train-3'" in targets.notes[0]
    assert '"cat"' in targets.notes[0]


def test_about_as_many_classes_as_samples_are_noted_with_the_remedy() -> None:
    ages = list(range(100))
    (note,) = read(ages, ages[:20])[0].notes
    assert "100 classes for 120 samples; dataset.task=regression" in note
    assert read(ages, ages[:20], task="classification")[0].notes == ("labels: 100 classes for 120 samples",)
    assert read(ages, ages[:20], task="regression")[0].notes == ()
