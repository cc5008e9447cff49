"""Reads and checks partition and labels of a dataset folder before any work starts.

What a label means for training is decided in labels.py; the samples themselves are not opened here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from feedrate.dataset.ids import IDs, Labels
from feedrate.dataset.labels import Targets, read_labels
from feedrate.errors import UserError
from feedrate.validation import nearest

PARTITIONS = ("train", "validation", "test")
_TABLES = ("samples.csv", "samples.parquet")
_COLUMNS = ("id", "partition", "label")
_FORM = "partition.json with labels.json, samples.csv, or samples.parquet (columns id, label, partition)"
# an empty component, '.' or '..' between slashes, or a leading slash, in IDs joined by NUL
_UNSAFE = re.compile(r"(?:^|[\0/])\.{0,2}(?=[\0/]|\Z)")


@dataclass(frozen=True)
class Catalog:
    """Partition and labels of one dataset, read and checked together.

    Attributes:
        root: the dataset folder.
        partition: IDs by the name of their partition; 'train' and 'validation' are always there.
        labels: labels of each partition, aligned with its IDs.
        targets: what the labels are: task, classes, number of outputs.
        digest: SHA-256 over partitions, IDs and labels, 64 hexadecimal digits.
        notes: sentences for the user about what is odd but no error.
    """

    root: Path
    partition: Mapping[str, IDs]
    labels: Mapping[str, Labels]
    targets: Targets
    digest: str
    notes: tuple[str, ...]

    @classmethod
    def read(cls, root: Path, task: str = "auto", suffix: str | None = ".pt") -> Catalog:
        """Reads and checks a dataset folder.

        Args:
            root: folder with the samples and either of the forms that the README describes.
            task: 'classification', 'regression', or 'auto' to tell from the labels.
            suffix: ending of the sample files, which must all exist; None skips that check.

        Raises:
            UserError: with up to five offenders, their number, and the remedy.
        """
        if not root.is_dir():
            fault = "is no folder" if root.exists() else "no such folder"
            raise UserError(f"dataset.root={root}: {fault}; name the folder that holds the samples and {_FORM}")
        try:
            source, partition, labels = _read_files(root)
        except OSError as error:
            raise UserError(f"{error.filename or root}: cannot be read ({error.strerror or error})") from None
        catalog = cls.of(root, partition, labels, task=task, suffix=suffix, source=source)
        if idle := [name for name in _TABLES if name != source and (root / name).is_file()]:
            note = f"{root}: {idle[0]} is not read, since {source} is there"
            return replace(catalog, notes=(note, *catalog.notes))
        return catalog

    @classmethod
    def of(
        cls,
        root: Path,
        partition: Mapping[str, Sequence[str]],
        labels: Mapping[str, Any],
        *,
        task: str = "auto",
        suffix: str | None = None,
        source: str = "partition",
    ) -> Catalog:
        """The catalog of a partition and labels that are at hand; checks as `read` does.

        Args:
            root, task, suffix: as for `read`.
            source: what messages call the partition, such as its file's name.
        """
        _check_partition(partition, source)
        notes = _check_labels(partition, labels, source)
        if suffix is not None:
            _check_files(root, partition, suffix)
        targets, values = read_labels({p: [labels[ID] for ID in ids] for p, ids in partition.items()}, partition, task)
        packed = {name: IDs(ids) for name, ids in partition.items()}
        aligned = {name: Labels(ids, values[name]) for name, ids in packed.items()}
        return cls(root, packed, aligned, targets, _digest(aligned, targets), (*notes, *targets.notes))


# ---------------------------------------------------------------------------------------------------------
# files
# ---------------------------------------------------------------------------------------------------------


def _read_files(root: Path) -> tuple[str, dict[str, list[str]], dict[str, Any]]:
    if (root / "partition.json").is_file():
        partition = _read_json(root / "partition.json", "{partition: [ID, ...]}")
        if not (root / "labels.json").is_file():
            raise UserError(f"{root}: partition.json has no labels.json beside it; write {{ID: label}} there")
        return "partition.json", partition, _read_json(root / "labels.json", "{ID: label}")
    for name in _TABLES:
        if (root / name).is_file():
            return name, *_read_table(root / name)
    raise UserError(f"dataset.root={root}: holds no dataset; needed is {_FORM}")


def _read_json(path: Path, form: str) -> dict[str, Any]:
    repeated: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):  # the last one would win silently
            repeated[:] = [key for key, n in Counter(key for key, _ in pairs).items() if n > 1]
        return found

    try:
        with path.open(encoding="utf-8-sig") as file:  # some editors begin a file with a byte-order mark
            value = json.load(file, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not valid JSON ({error}); write it anew") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__}; an object is needed, {form}")
    if repeated:
        raise UserError(_offence(f"{path}: keys that stand more than once", repeated, "keep one of each"))
    return value


def _read_table(path: Path) -> tuple[dict[str, list[str]], dict[str, Any]]:
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    try:
        if path.suffix == ".csv":
            # IDs stay text: 007 is not 7
            types = {"id": pyarrow.string(), "partition": pyarrow.string()}
            table = pyarrow.csv.read_csv(path, convert_options=pyarrow.csv.ConvertOptions(column_types=types))
        else:
            table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: cannot be read as {path.suffix[1:]} ({reason}); write it anew") from None
    for column in ("id", "label", "partition"):
        if table.column_names.count(column) != 1:
            fault = "has no column" if column not in table.column_names else "has more than one column"
            remedy = f"needed are id, label and partition{_meant(column, table.column_names)}"
            raise UserError(f"{path}: {fault} '{column}'; {remedy}\nIts columns: {', '.join(table.column_names)[:200]}")
    if path.suffix == ".csv" and pyarrow.types.is_binary(table["label"].type):
        raise UserError(f"{path}: its labels are not in UTF-8; save the table in UTF-8")
    ids, names, values = (table[column].to_pylist() for column in _COLUMNS)
    if path.suffix == ".csv":
        values = [_vector(value) for value in values]
    repeated = [str(ID) for ID, n in Counter(ids).items() if n > 1]
    if repeated:
        raise UserError(_offence(f"{path.name}: IDs on more than one row", repeated, "keep one row for each"))
    if path.suffix == ".csv" and (bare := [ID for ID, value in zip(ids, values, strict=True) if value in (None, "")]):
        remedy = "write their labels, or take out their rows"  # an empty cell, which among texts would be a class
        raise UserError(_offence(f"{path.name}: IDs without a label", bare, remedy))
    partition: dict[str, list[str]] = {}
    for ID, name in zip(ids, names, strict=True):
        partition.setdefault(name, []).append(ID)
    return partition, dict(zip(ids, values, strict=True))


def _meant(column: str, found: Sequence[str]) -> str:
    """What a table without that column probably is."""
    for separator, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "'|'")):
        if len(found) == 1 and separator in found[0]:
            return f"; {name} separate them, write commas"
    if alike := [name for name in found if name not in _COLUMNS and name.strip().lower() == column]:
        return f"; rename {alike[0]!r}, without spaces and in small letters"
    near = nearest(column, [name for name in found if name not in _COLUMNS])
    return near.replace("did you mean", "is it called").rstrip("?") + "? Rename it" if near else ""


def _vector(value: Any) -> Any:
    """The list of numbers that a cell holds as JSON, anything else as it is."""
    if not (isinstance(value, str) and value.lstrip().startswith("[")):
        return value
    try:
        found = json.loads(value)
    except ValueError:
        return value
    return found if isinstance(found, list) and all(type(x) in (int, float) for x in found) else value


# ---------------------------------------------------------------------------------------------------------
# checks
# ---------------------------------------------------------------------------------------------------------


def _check_partition(partition: Mapping[str, Sequence[str]], source: str) -> None:
    if strange := [name for name in partition if name not in PARTITIONS]:
        near = nearest(str(strange[0]), list(PARTITIONS))
        raise UserError(f"{source}: unknown partition {strange[0]!r}; known are {', '.join(PARTITIONS)}{near}")
    for name in ("train", "validation"):
        if name not in partition:
            raise UserError(f"{source}: has no partition '{name}'; needed are 'train' and 'validation'")
    for name, ids in partition.items():
        if not isinstance(ids, (list, tuple, IDs)):
            raise UserError(f"{source}: '{name}' holds a {type(ids).__name__}; a list of IDs is needed")
        if not len(ids):
            remedy = "leave it out" if name == "test" else "give it at least one ID"
            raise UserError(f"{source}: partition '{name}' is empty; {remedy}")
        if not all(issubclass(kind, str) for kind in set(map(type, ids))):
            wrong = [ID for ID in ids if not isinstance(ID, str)]
            remedy = 'write IDs in quotes, such as "007"'
            if source == "samples.parquet":
                remedy = "write the column id as texts, such as df['id'].astype(str), or .str.decode('utf-8') for bytes"
            raise UserError(_offence(f"{source}: IDs of '{name}' that are no text", wrong, remedy))
        joined = "\0".join(ids)
        if _UNSAFE.search(joined) or joined.count("\0") != len(ids) - 1:
            wrong = [ID for ID in ids if "\0" in ID or _UNSAFE.search(ID)]
            remedy = "an ID is a path below the root, without leading '/', '.', '..', empty parts or NUL: 'scans/007'"
            raise UserError(_offence(f"{source}: IDs of '{name}' that are no path below the root", wrong, remedy))
        if not _encodable(joined):
            wrong = [ID for ID in ids if not _encodable(ID)]
            raise UserError(_offence(f"{source}: IDs of '{name}' that are no valid Unicode", wrong, "rename them"))
    seen: dict[str, set[str]] = {}
    for name, ids in partition.items():
        unique = set(ids)
        if len(unique) < len(ids):
            repeated = [ID for ID, n in Counter(ids).items() if n > 1]
            remedy = "an ID stands once in a partition"
            raise UserError(_offence(f"{source}: IDs that stand twice in '{name}'", repeated, remedy))
        for other, others in seen.items():
            if both := sorted(unique & others):
                seen_twice = "test" if "test" in (name, other) else "validation"
                what = "validation" if "train" not in (name, other) else "training"
                remedy = f"an ID belongs to one partition, or the {seen_twice} measures what {what} has seen"
                raise UserError(_offence(f"{source}: IDs both in '{other}' and in '{name}'", both, remedy))
        seen[name] = unique


def _check_labels(partition: Mapping[str, Sequence[str]], labels: Mapping[str, Any], source: str) -> tuple[str, ...]:
    where = "labels.json" if source == "partition.json" else source
    total = 0
    for name, ids in partition.items():
        total += len(ids)
        if without := [ID for ID in ids if ID not in labels]:
            remedy = "add their labels, or take them out of the partition"
            raise UserError(_offence(f"{where}: IDs of '{name}' without a label", without, remedy))
    if len(labels) == total:
        return ()
    used = {ID for ids in partition.values() for ID in ids}
    idle = [ID for ID in labels if ID not in used]
    return (_offence(f"{where}: labels whose ID is in no partition", idle, "they are not used"),)


def _check_files(root: Path, partition: Mapping[str, Sequence[str]], suffix: str) -> None:
    """One listing of each folder that holds samples: a stat for each file costs far more."""
    folders = {"", *(ID.rpartition("/")[0] for ids in partition.values() for ID in ids if "/" in ID)}
    strange: set[str] = set()
    present = {name for folder in sorted(folders) for name in _listing(root, folder, suffix, strange)}
    for name, ids in partition.items():
        if missing := [ID for ID in ids if ID not in present]:
            remedy = "add the files, or take the IDs out of the partition"
            if others := _endings(root / missing[0]):
                remedy += (
                    f"\nThere is {missing[0]}{others[0]}: a dataset class that reads it has suffix = {others[0]!r}"
                )
            raise UserError(_offence(f"{root}: IDs of '{name}' without a file ID{suffix}", missing, remedy))
        if strange and (wrong := [ID for ID in ids if ID in strange]):
            fault = f"{root}: IDs of '{name}' whose ID{suffix} is no regular file (a folder, a pipe, a broken link)"
            raise UserError(_offence(fault, wrong, "replace it, or take the IDs out of the partition"))


def _endings(sample: Path) -> list[str]:
    """What the names of the files that begin as the sample's name end with."""
    try:
        names = [path.name for path in sample.parent.iterdir()]
    except OSError:
        return []
    return sorted(name.removeprefix(sample.name) for name in names if name.startswith(f"{sample.name}."))


def _listing(root: Path, folder: str, suffix: str, strange: set[str]) -> Iterator[str]:
    """IDs of the sample files in one folder, none if there is no such folder.

    Those that are no regular files are added to `strange`. The listing itself tells that; only links are followed.
    """
    prefix = f"{folder}/" if folder else ""
    try:
        with os.scandir(root / folder) as entries:
            for entry in entries:
                if entry.name.endswith(suffix):
                    ID = prefix + entry.name.removesuffix(suffix)
                    if not entry.is_file():
                        strange.add(ID)
                    yield ID
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise UserError(f"{root / folder}: cannot be listed ({error.strerror}); check its permissions") from None


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can hold and a file name cannot
        return False
    return True


def _offence(fault: str, offenders: Sequence[Any], remedy: str) -> str:
    shown = ", ".join(_cut(repr(ID)) for ID in offenders[:5]) + (", ..." if len(offenders) > 5 else "")
    return f"{fault}: {shown} ({len(offenders):,} in all); {remedy}"


def _cut(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:76]}...{text[-1]}"


def _digest(labels: Mapping[str, Labels], targets: Targets) -> str:
    import numpy as np

    digest = hashlib.sha256(json.dumps([targets.task, targets.classes], default=str).encode())
    for name in sorted(labels):
        ids = labels[name].list_IDs
        digest.update(f"{name},{len(ids)};".encode())
        for start in range(0, len(ids), 65_536):
            digest.update(ids.encode(np.arange(start, min(start + 65_536, len(ids)))))
        digest.update(labels[name].tensor.numpy().tobytes())
    return digest.hexdigest()
