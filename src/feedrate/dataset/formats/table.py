"""Reads samples.csv or samples.parquet: the columns id, label and partition, and no other.

What the labels mean is decided in labels.py; whether the IDs are right is checked in catalog.py.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feedrate.errors import UserError
from feedrate.validation import nearest

if TYPE_CHECKING:
    import pyarrow

COLUMNS = ("id", "partition", "label")
_BLOCK_BYTES = 1 << 24  # read at once; a row must fit
_MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


@dataclass(frozen=True)
class Table:
    """The rows of a table.

    Attributes:
        ids, partitions, labels: one of each row, in the order of the rows.
        as_text: the labels are texts that are still to be interpreted.
    """

    ids: list[Any]
    partitions: list[Any]
    labels: list[Any]
    as_text: bool


def read_table(path: Path) -> Table:
    """The table at `path`, whose ending says what it is.

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
        raise UserError(f"{path}: cannot be read as {path.suffix[1:]} ({reason}); write it anew") from None


def _read_csv(path: Path) -> Table:
    """All three columns as the texts that stand there; of the other columns nothing is decoded."""
    import pyarrow.csv

    blank, names = _header(path)
    _check_columns(path, names)
    table = pyarrow.csv.read_csv(
        path,
        pyarrow.csv.ReadOptions(
            block_size=_BLOCK_BYTES,
            skip_rows=blank,
            column_names=[name if name in COLUMNS else str(number) for number, name in enumerate(names)],
            skip_rows_after_names=1,
        ),
        pyarrow.csv.ParseOptions(newlines_in_values=True),
        pyarrow.csv.ConvertOptions(
            include_columns=COLUMNS, column_types=dict.fromkeys(COLUMNS, pyarrow.large_binary())
        ),
    )
    ids, partitions, labels = (_decoded(path, column, table[column]) for column in COLUMNS)
    return Table(ids.to_pylist(), _shared(partitions), _shared(labels), as_text=True)


def _header(path: Path) -> tuple[int, list[str]]:
    """How many blank lines a CSV begins with, and the names in its first row."""
    with path.open("rb") as file:
        head = file.read(4096)
    found = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
    if found or b"\0" in head:
        fault = f"is in {found}" if found else "holds zero bytes (as UTF-16 does)"
        raise UserError(f"{path}: {fault}, and UTF-8 is expected; save the table in UTF-8")
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        blank = sum(1 for _ in takewhile(lambda line: not line.strip("\r\n"), file))
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        return blank, next((row for row in csv.reader(file) if row), [])


def _check_columns(path: Path, names: Sequence[str]) -> None:
    for column in ("id", "label", "partition"):
        if names and names.count(column) != 1:
            fault = "has no column" if column not in names else "has more than one column"
            remedy = f"needed are id, label and partition{_meant(column, names)}"
            raise UserError(f"{path}: {fault} '{column}'; {remedy}\nIts columns: {', '.join(names)[:200]}")


def _meant(column: str, found: Sequence[str]) -> str:
    """What a table without that column probably is."""
    for separator, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "'|'")):
        if len(found) == 1 and separator in found[0]:
            return f"; {name} separate them, write commas"
    if alike := [name for name in found if name not in COLUMNS and name.strip().lower() == column]:
        return f"; rename {alike[0]!r}, without spaces and in small letters"
    near = nearest(column, [name for name in found if name not in COLUMNS])
    return near.replace("did you mean", "is it called").rstrip("?") + "? Rename it" if near else ""


def _decoded(path: Path, column: str, values: pyarrow.ChunkedArray) -> pyarrow.ChunkedArray:
    """Bytes as texts.

    Raises:
        UserError: they are not in UTF-8.
    """
    import pyarrow

    try:
        return values.cast(pyarrow.large_string())  # of more than 2 GB, too
    except pyarrow.ArrowInvalid:
        for row, value in enumerate(values.to_pylist(), start=1):
            if value.decode(errors="replace").encode() != value:
                found = f"in another encoding: as Windows-1252 it is {value.decode('cp1252', errors='replace')[:60]!r}"
                fault = f"UTF-8 is expected, and the {column} of row {row:,} is {found}"
                raise UserError(f"{path}: {fault}; save the table in UTF-8") from None
        raise


def _shared(values: pyarrow.ChunkedArray) -> list[str]:
    """As `to_pylist`, with one object for all equal texts: less memory, and faster to look up."""
    encoded = values.combine_chunks().dictionary_encode()
    distinct = encoded.dictionary.to_pylist()
    return [distinct[index] for index in encoded.indices.to_pylist()]


def _read_parquet(path: Path) -> Table:
    """Each label as the type of its column says; dates, times and decimals, which JSON has not, as texts."""
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
    if as_text:
        values = ["" if value is None else value for value in labels.cast(pyarrow.string()).to_pylist()]
    else:
        values = labels.to_pylist()
    return Table(table["id"].to_pylist(), table["partition"].to_pylist(), values, as_text)
