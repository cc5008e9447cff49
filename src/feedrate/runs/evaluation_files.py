"""Files of an evaluation: results as JSON, the worst samples as CSV, confusion matrix; tables of predictions."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from feedrate.reporting.picture import optional, save
from feedrate.reporting.plots import confusion_matrix
from feedrate.system.files import atomic_write, check_place
from feedrate.trainer.evaluate import Evaluation


def write_evaluation(folder: Path, partition: str, found: Evaluation, about: Mapping[str, Any]) -> list[Path]:
    """Writes PARTITION.json, PARTITION_worst.csv and a picture of the confusion matrix; returns what was written.

    `about`, which run and weights, goes into the JSON.
    """
    folder.mkdir(parents=True, exist_ok=True)
    confusion, per_class = found.meter.confusion(), found.meter.per_class()
    metrics = {name: value if math.isfinite(value) else None for name, value in found.meter.metrics().items()}
    results = {**about, "partition": partition, "samples": found.meter.samples, "metrics": metrics}
    files = [folder / f"{partition}.json"]
    text = json.dumps({**results, "per_class": per_class, "confusion": confusion}, indent=2, default=str)
    atomic_write(files[0], text)
    if found.worst:
        files.append(folder / f"{partition}_worst.csv")
        write_table(files[-1], ({"id": s.ID, "loss": s.loss, **s.row} for s in found.worst))
    if confusion is not None:
        path, names = folder / f"{partition}_confusion.png", [str(row["class"]) for row in per_class or []]
        with optional(path.name):
            save(confusion_matrix(confusion, names, title=partition), path)
            files.append(path)
    return files


def write_table(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes rows of equal columns as CSV, or as Parquet if the file's name ends so; returns their number.

    The file appears under its name only when it is whole. That it cannot be written (OSError) is found at once.
    """
    check_place(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    try:
        count = (_write_parquet if path.suffix == ".parquet" else _write_csv)(temporary, rows)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    count, writer = 0, None
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        for row in rows:
            if writer is None:
                writer = csv.DictWriter(file, list(row))
                writer.writeheader()
            writer.writerow({name: _shown(value) for name, value in row.items()})
            count += 1
    return count


def _write_parquet(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    import pyarrow
    import pyarrow.parquet

    kept = list(rows)
    try:
        table = pyarrow.Table.from_pylist(kept)
    except (pyarrow.ArrowException, OverflowError):  # classes of several kinds, such as 1 and "one", or huge numbers
        table = pyarrow.Table.from_pylist([{**row, "prediction": _shown(row["prediction"])} for row in kept])
    pyarrow.parquet.write_table(table, path)
    return len(kept)


def _shown(value: Any) -> str:
    if isinstance(value, float):  # a float32 in as many digits as it has; any other float, such as a label, in full
        return f"{value:.9g}" if float(np.float32(value)) == value else repr(value)
    return value if isinstance(value, str) else json.dumps(value)
