"""Reads samples.csv or samples.parquet: the columns id, label and partition, and no other."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from feedrate.dataset.labels import encodable
from feedrate.errors import UserError

COLUMNS = ("id", "partition", "label")


class Table(NamedTuple):
    """The columns of a table."""

    ids: list[Any]
    partitions: list[Any]
    labels: list[Any]
    as_text: bool  # the labels are texts that are still to be interpreted


def read_table(path: Path) -> Table:
    """The table at `path`, a CSV or Parquet file by its ending.

    Raises:
        UserError: it cannot be read, or lacks a column.
    """
    import pyarrow

    try:
        return _read_csv(path) if path.suffix == ".csv" else _read_parquet(path)
    except UserError:
        raise
    except (pyarrow.ArrowException, csv.Error, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{path}: cannot be read as {path.suffix[1:]} ({reason}); write it again") from None


def _read_csv(path: Path) -> Table:
    """All three columns as texts; bytes of other columns need not be UTF-8."""
    with path.open("rb") as raw:
        if b"\0" in raw.read(4096):
            raise UserError(f"{path}: holds zero bytes (as UTF-16 does), and UTF-8 is expected; save it in UTF-8")
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    columns: tuple[list[str], list[str], list[str]] = ([], [], [])
    shared: dict[str, str] = {}  # one object for equal partitions and labels
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = (row for row in csv.reader(file, strict=True) if row)
        names = next(rows, None)
        if names is None:
            raise ValueError("it is empty")
        _check_columns(path, names)
        at_id, at_partition, at_label = (names.index(column) for column in COLUMNS)
        for number, row in enumerate(rows, start=1):
            if len(row) != len(names):
                raise ValueError(f"row {number:,} has {len(row)} columns, not {len(names)}")
            columns[0].append(row[at_id])
            columns[1].append(shared.setdefault(row[at_partition], row[at_partition]))
            columns[2].append(shared.setdefault(row[at_label], row[at_label]))
    for column, values in zip(COLUMNS, columns, strict=True):
        if not encodable("".join(values)):
            number = next(n for n, value in enumerate(values, start=1) if not encodable(value))
            fault = f"UTF-8 is expected, and the {column} of row {number:,} is in another encoding"
            raise UserError(f"{path}: {fault}; save the table in UTF-8")
    return Table(*columns, as_text=True)


def _check_columns(path: Path, names: Sequence[str]) -> None:
    for column in ("id", "label", "partition"):
        if names.count(column) != 1:
            fault = "has no column" if column not in names else "has more than one column"
            shown = ", ".join(names)[:200].encode(errors="replace").decode()
            remedy = "needed are id, label and partition, separated by commas"
            raise UserError(f"{path}: {fault} {column!r}; {remedy}\nIts columns: {shown}")


def _read_parquet(path: Path) -> Table:
    """Labels in the type of their column; dates, times and decimals, which JSON lacks, as texts."""
    import pyarrow
    import pyarrow.parquet
    from pyarrow import types

    _check_columns(path, pyarrow.parquet.read_schema(path).names)
    table = pyarrow.parquet.read_table(path, columns=list(COLUMNS))
    labels = table["label"]
    if types.is_dictionary(labels.type):
        labels = labels.cast(labels.type.value_type)
    if types.is_list(labels.type) and types.is_decimal(labels.type.value_type):
        labels = labels.cast(pyarrow.list_(pyarrow.float64()))
    as_text = any(
        is_type(labels.type) for is_type in (types.is_decimal, types.is_date, types.is_time, types.is_timestamp)
    )
    values = labels.cast(pyarrow.string()).fill_null("").to_pylist() if as_text else labels.to_pylist()
    return Table(table["id"].to_pylist(), table["partition"].to_pylist(), values, as_text)
