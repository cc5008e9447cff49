"""Files of an evaluation: results as JSON, the worst samples as CSV, pictures; tables of predictions."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from feedrate.reporting.picture import new_figure, optional, save, styled
from feedrate.reporting.plots import confusion_matrix, predicted_against_true
from feedrate.system.atomic_write import atomic_write, check_place
from feedrate.trainer.evaluate import Evaluation, Sample

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

COLUMNS = 6  # pictures side by side
SMALLEST = 4  # pixels; less is no picture that a person can read


def write_evaluation(folder: Path, partition: str, found: Evaluation, about: Mapping[str, Any]) -> list[Path]:
    """Writes PARTITION.json, PARTITION_worst.csv and pictures; returns what was written.

    Args:
        about: which run and weights, for the JSON.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    confusion, per_class = found.meter.confusion(), found.meter.per_class()
    metrics = {name: value if math.isfinite(value) else None for name, value in found.meter.metrics().items()}
    results = {**about, "partition": partition, "samples": found.meter.samples, "metrics": metrics}
    files = [folder / f"{partition}.json"]
    text = json.dumps({**results, "per_class": per_class, "confusion": confusion}, indent=2, default=str)
    atomic_write(files[0], text)

    drawn: dict[str, Callable[[], Figure]] = {}
    if confusion is not None:
        names = [str(row["class"]) for row in per_class or []]
        drawn["confusion"] = partial(confusion_matrix, confusion, names, title=partition)
    if found.pairs is not None:
        drawn["predicted"] = partial(predicted_against_true, found.pairs[1], found.pairs[0])
    if found.worst:
        files.append(folder / f"{partition}_worst.csv")
        write_table(files[-1], ({"id": s.ID, "loss": s.loss, **s.row} for s in found.worst))
        if picture_of(found.worst[0].X) is not None:
            drawn["worst"] = partial(worst_samples, found.worst, partition)
    for name, draw in drawn.items():
        path = folder / f"{partition}_{name}.png"
        with optional(path.name):
            save(draw(), path)
            files.append(path)
    return files


def write_table(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes rows of equal columns as CSV, or as Parquet if the file's name ends so; returns their number.

    The file appears under its name only when it is whole.

    Raises:
        OSError: it cannot be written, which is found before the first row is computed.
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


@styled()
def worst_samples(samples: Sequence[Sample], partition: str) -> Figure:
    """The samples as pictures, each with its ID, loss, label and prediction."""
    rows = -(-len(samples) // COLUMNS)
    figure = new_figure(2.0 * COLUMNS, 2.5 * rows + 0.4)
    for axes, sample in zip(figure.subplots(rows, COLUMNS, squeeze=False).flat, samples, strict=False):
        image = picture_of(sample.X)
        if image is not None:
            axes.imshow(image, cmap="gray" if image.ndim == 2 else None)
        title = f"{_brief(sample.ID)}\nloss {sample.loss:.3g}"
        if "label" in sample.row:  # a class or one number
            title += f"\n{_brief(sample.row['label'])}, predicted {_brief(sample.row['prediction'])}"
        axes.set_title(title, fontsize=8, loc="center")
    figure.suptitle(f"{partition}: the {len(samples)} samples with the largest loss")
    for axes in figure.axes:
        axes.set_axis_off()
    return figure


def picture_of(X: Tensor) -> Any:
    """X as an array that can be shown, (H, W) or (H, W, 3) in [0, 1]; None where it is no image.

    Images are (H, W), (C, H, W) and (H, W, C) with one or three channels.
    """
    array = X.detach().float().numpy()
    if array.ndim == 3 and array.shape[0] in (1, 3):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] != 3) or min(array.shape[:2]) < SMALLEST:
        return None
    array = np.nan_to_num(array, posinf=0.0, neginf=0.0)
    return (array - array.min()) / max(float(np.ptp(array)), 1e-12)


def _brief(value: Any) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else " ".join(str(value).split())
    return text if len(text) <= 20 else f"…{text[-19:]}"
