"""Reads and checks partition and labels of a dataset folder before any work starts.

What a label means for training is decided in labels.py; the samples themselves are not opened here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feedrate.dataset.ids import IDs, Labels
from feedrate.dataset.labels import Targets, read_labels
from feedrate.errors import UserError

PARTITIONS = ("train", "validation", "test")
_FORM = "partition.json with labels.json, samples.csv, or samples.parquet (columns id, label, partition)"
# an empty component, '.' or '..' between slashes, or a leading slash, in IDs joined by NUL
_UNSAFE = re.compile(r"(?:^|[\0/])\.{0,2}(?=[\0/]|$)")


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
            raise UserError(f"dataset.root={root}: no such folder; name the folder that holds partition.json")
        source, partition, labels = _read_files(root)
        return cls.of(root, partition, labels, task=task, suffix=suffix, source=source)

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
        """The catalog of a partition and labels that are at hand; checks as `read` does."""
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
        partition = _read_json(root / "partition.json")
        if not (root / "labels.json").is_file():
            raise UserError(f"{root}: partition.json has no labels.json beside it; write {{ID: label}} there")
        return "partition.json", partition, _read_json(root / "labels.json", pairs=True)
    for name in ("samples.csv", "samples.parquet"):
        if (root / name).is_file():
            return name, *_read_table(root / name)
    raise UserError(f"dataset.root={root}: holds no dataset; needed is {_FORM}")


def _read_json(path: Path, pairs: bool = False) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8") as file:
            # pairs: a key that stands twice would otherwise win silently with its last value
            value = json.load(file, object_pairs_hook=list if pairs else None)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not valid JSON ({error})") from None
    if pairs and isinstance(value, list):
        # the hook leaves an object as a list of pairs; a JSON list of two-element lists looks different
        if any(type(pair) is not tuple for pair in value):
            raise UserError(f"{path}: must be an object, {{ID: label}}")
        found = dict(value)
        if len(found) < len(value):
            repeated = [ID for ID, n in Counter(ID for ID, _ in value).items() if n > 1]
            raise UserError(_offence(f"{path.name}: IDs with more than one label", repeated, "keep one"))
        return found
    if not isinstance(value, dict):
        raise UserError(f"{path}: must be an object, not {type(value).__name__}")
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
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path}: cannot be read as {path.suffix[1:]} ({str(error).splitlines()[0]})") from None
    if missing := {"id", "label", "partition"} - set(table.column_names):
        raise UserError(f"{path}: has no column {', '.join(sorted(missing))}; needed are id, label and partition")
    ids, names = table["id"].to_pylist(), table["partition"].to_pylist()
    repeated = [str(ID) for ID, n in Counter(ids).items() if n > 1]
    if repeated:
        raise UserError(_offence(f"{path.name}: IDs on more than one row", repeated, "keep one row"))
    partition: dict[str, list[str]] = {}
    for ID, name in zip(ids, names, strict=True):
        partition.setdefault(name, []).append(ID)
    return partition, dict(zip(ids, table["label"].to_pylist(), strict=True))


# ---------------------------------------------------------------------------------------------------------
# checks
# ---------------------------------------------------------------------------------------------------------


def _check_partition(partition: Mapping[str, Sequence[str]], source: str) -> None:
    for name in ("train", "validation"):
        if name not in partition:
            raise UserError(f"{source}: has no partition '{name}'; needed are 'train' and 'validation'")
    if strange := sorted(str(name) for name in set(partition) - set(PARTITIONS)):
        raise UserError(f"{source}: unknown partition '{strange[0]}'; known are {', '.join(PARTITIONS)}")
    for name, ids in partition.items():
        if not isinstance(ids, (list, tuple, IDs)):
            raise UserError(f"{source}: '{name}' must be a list of IDs, not {type(ids).__name__}")
        if not len(ids):
            raise UserError(f"{source}: partition '{name}' is empty; give it at least one ID, or leave out 'test'")
        if not set(map(type, ids)) <= {str}:
            wrong = [json.dumps(ID) for ID in ids if type(ID) is not str]
            raise UserError(
                _offence(f"{source}: IDs of '{name}' that are no text", wrong, 'write IDs in quotes: "007"')
            )
        joined = "\0".join(ids)
        if _UNSAFE.search(joined) or joined.count("\0") != len(ids) - 1:
            wrong = [ID for ID in ids if "\0" in ID or _UNSAFE.search(ID)]
            remedy = "without leading '/', '..' or empty parts, such as 'scans/007'"
            raise UserError(_offence(f"{source}: IDs of '{name}' that are no path below the root", wrong, remedy))
    seen: dict[str, set[str]] = {}
    for name, ids in partition.items():
        unique = set(ids)
        if len(unique) < len(ids):
            repeated = [ID for ID, n in Counter(ids).items() if n > 1]
            remedy = "an ID stands once in a partition"
            raise UserError(_offence(f"{source}: IDs that stand twice in '{name}'", repeated, remedy))
        for other, others in seen.items():
            if both := sorted(unique & others):
                remedy = "an ID belongs to one partition, or validation measures what training has seen"
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
    """One listing of the folder, and of its subfolders only if an ID has any: a stat per file costs far more."""
    nested = any("/" in ID for ids in partition.values() for ID in ids)
    present = set(_listing(root, "", suffix, nested))
    for name, ids in partition.items():
        if missing := [ID for ID in ids if ID not in present]:
            remedy = "add the files, or take the IDs out of the partition"
            raise UserError(_offence(f"{root}: IDs of '{name}' without a file ID{suffix}", missing, remedy))


def _listing(folder: str | Path, prefix: str, suffix: str, nested: bool) -> Iterable[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(suffix):
                yield prefix + entry.name[: -len(suffix)]
            elif nested and entry.is_dir():
                yield from _listing(entry.path, f"{prefix}{entry.name}/", suffix, nested)


def _offence(fault: str, offenders: Sequence[str], remedy: str) -> str:
    shown = ", ".join(repr(ID) for ID in offenders[:5]) + (", ..." if len(offenders) > 5 else "")
    return f"{fault}: {shown} ({len(offenders):,} in all); {remedy}"


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
