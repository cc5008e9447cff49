"""A table of predictions gives back the labels as they stood in the data."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from feedrate.dataset import Catalog
from feedrate.runs.evaluation_files import write_table
from feedrate.trainer.evaluate import rows_of


def predicted(folder: Path, catalog: Catalog) -> list[str]:
    """What predictions.csv says where each class is predicted once."""
    rows = rows_of(torch.eye(catalog.targets.num_outputs), catalog.targets)
    write_table(folder / "predictions.csv", rows)
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return [row["prediction"] for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    "labels",
    [
        ["01001", "02", "1001", "2"],
        ["1.0", "2.0", "10.0"],
        ["0.10", "0.20"],
        ["0.1234567890123", "0.1234567890124"],
        ["-1", "0", "12345678901234567891"],
        ["False", "True"],
        ["false", "true"],
        [" cat", "06:00", "2024-01-01", 'a, "b"\nc', "cat"],
    ],
    ids=str,
)
def test_predictions_as_CSV_give_back_the_texts_that_were_read(tmp_path: Path, labels: list[str]) -> None:
    with (tmp_path / "samples.csv").open("w", encoding="utf-8", newline="") as file:
        rows = [(f"{name}{i}", label, name) for name in ("train", "validation") for i, label in enumerate(labels)]
        csv.writer(file).writerows([("id", "label", "partition"), *rows])
    assert predicted(tmp_path, Catalog.read(tmp_path, "classification", suffix=None)) == labels


def test_whole_numbers_of_any_size_are_written_to_Parquet(tmp_path: Path) -> None:
    import pyarrow.parquet

    labels = {"a": 10**30, "b": 10**30 + 1}
    catalog = Catalog.of(tmp_path, {"train": ["a", "b"], "validation": ["v"]}, {**labels, "v": 10**30})
    write_table(tmp_path / "p.parquet", rows_of(torch.eye(2), catalog.targets))
    found = pyarrow.parquet.read_table(tmp_path / "p.parquet")["prediction"].to_pylist()
    assert found == [str(value) for value in labels.values()]


def test_classes_from_JSON_that_are_numbers_are_written_in_full(tmp_path: Path) -> None:
    values: list[Any] = [0.1, 0.1234567890123, 0.1234567890124, 3]
    labels = {f"x{i}": value for i, value in enumerate(values)}
    catalog = Catalog.of(tmp_path, {"train": [*labels], "validation": ["v"]}, {**labels, "v": 3}, task="classification")
    assert predicted(tmp_path, catalog) == [json.dumps(value) for value in values]
