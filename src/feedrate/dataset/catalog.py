"""Reads and checks partition and labels of a dataset folder, without opening the samples."""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from feedrate.config import nearby
from feedrate.dataset.formats.table import read_table
from feedrate.dataset.ids import IDs, Labels, encode
from feedrate.dataset.labels import Targets, encodable, read_labels, read_texts
from feedrate.errors import UserError, offence
from feedrate.validation import nearest

PARTITIONS = ("train", "validation", "test")
_TABLES = ("samples.csv", "samples.parquet")
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
        targets: task, classes, number of outputs.
        digest: SHA-256 over partitions, IDs and labels, 64 hexadecimal digits.
        notes: remarks for the user that are no errors.
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
            root: folder with the samples and partition and labels, as JSON or table (docs/data.md).
            task: 'classification', 'regression', or 'auto' to derive it from the labels.
            suffix: ending of the sample files, which must all exist; None skips that check.

        Raises:
            UserError: with up to five offenders, their number, and the remedy.
        """
        if not root.is_dir():
            fault = "is no folder" if root.exists() else "no such folder"
            need = f"name the folder that holds the samples and {_FORM}"
            raise UserError(f"dataset.root={root}: {fault}; {need}{nearby(root)}")
        try:
            source, partition, labels, as_text = _read_files(root)
        except OSError as error:
            raise UserError(f"{error.filename or root}: cannot be read ({error.strerror or error})") from None
        return cls.of(root, partition, labels, task=task, suffix=suffix, source=source, as_text=as_text)

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
        as_text: bool = False,
    ) -> Catalog:
        """The catalog of a partition and labels in memory; checks as `read` does.

        Args:
            root, task, suffix: as for `read`.
            source: name of the partition in messages, such as its file's.
            as_text: the labels are texts of a table.
        """
        _check_partition(partition, source)
        notes = _check_labels(partition, labels, source)
        read = read_texts if as_text else read_labels
        targets, values = read({p: [labels[ID] for ID in ids] for p, ids in partition.items()}, partition, task)
        if suffix is not None:
            _check_files(root, partition, suffix)
        packed = {name: IDs(ids) for name, ids in partition.items()}
        aligned = {name: Labels(ids, values[name], targets.classes) for name, ids in packed.items()}
        return cls(root, packed, aligned, targets, _digest(aligned, targets), (*notes, *targets.notes))


def _read_files(root: Path) -> tuple[str, dict[str, list[str]], dict[str, Any], bool]:
    """The source's name, the partition, the labels, and whether these are texts of a table."""
    if len(found := [name for name in ("partition.json", *_TABLES) if (root / name).is_file()]) > 1:
        raise UserError(f"{root}: holds {' and '.join(found)}; keep one of them, as they may differ")
    if (root / "partition.json").is_file():
        partition = _read_json(root / "partition.json", "{partition: [ID, ...]}")
        if not (root / "labels.json").is_file():
            raise UserError(f"{root}: partition.json has no labels.json beside it; write {{ID: label}} there")
        return "partition.json", partition, _read_json(root / "labels.json", "{ID: label}"), False
    for name in _TABLES:
        if not (root / name).is_file():
            continue
        table = read_table(root / name)
        if repeated := [str(ID) for ID in _repeated(table.ids)]:
            raise UserError(offence(f"{name}: IDs on more than one row", repeated, "keep one row for each"))
        partition = {}
        for ID, of in zip(table.ids, table.partitions, strict=True):
            partition.setdefault(of, []).append(ID)
        return name, partition, dict(zip(table.ids, table.labels, strict=True)), table.as_text
    raise UserError(f"dataset.root={root}: holds no dataset; needed is {_FORM}")


def _read_json(path: Path, form: str) -> dict[str, Any]:
    repeated: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):  # json would silently keep the last one
            repeated[:] = _repeated(key for key, _ in pairs)
        return found

    try:
        with path.open(encoding="utf-8-sig") as file:  # some editors begin a file with a byte-order mark
            value = json.load(file, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not valid JSON ({error}); write it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__}; an object is needed, {form}")
    if repeated:
        raise UserError(offence(f"{path}: repeated keys", repeated, "keep one of each"))
    return value


def _repeated(values: Iterator[Any] | Sequence[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def _check_partition(partition: Mapping[str, Sequence[str]], source: str) -> None:
    for name in partition:
        if name not in PARTITIONS:
            plain = str(name).strip().lower()
            near = next((known for known in PARTITIONS if plain and known.startswith(plain)), plain)
            fault = f"unknown partition {name!r}; known are {', '.join(PARTITIONS)}"
            raise UserError(f"{source}: {fault}{nearest(near, list(PARTITIONS))}")
    for name in ("train", "validation"):
        if name not in partition:
            raise UserError(f"{source}: has no partition '{name}'; needed are 'train' and 'validation'")
    seen: dict[str, set[str]] = {}
    for name, ids in partition.items():
        _check_IDs(name, ids, source)
        if repeated := _repeated(ids):
            raise UserError(offence(f"{source}: IDs that stand twice in '{name}'", repeated, "keep one of each"))
        seen[name] = set(ids)
    for name, unique in seen.items():
        for other in list(seen)[: list(seen).index(name)]:
            if both := sorted(unique & seen[other]):
                remedy = "an ID belongs to one partition, or evaluation measures what training has seen"
                raise UserError(offence(f"{source}: IDs both in '{other}' and in '{name}'", both, remedy))


def _check_IDs(name: str, ids: Sequence[str], source: str) -> None:
    """Checks that the IDs of one partition are texts and paths below the root."""
    if not isinstance(ids, (list, tuple, IDs)):
        raise UserError(f"{source}: '{name}' holds a {type(ids).__name__}; a list of IDs is needed")
    if not len(ids):
        optional = ", or leave it out" if name == "test" else ""
        raise UserError(f"{source}: partition '{name}' is empty; give it at least one ID{optional}")
    if not all(issubclass(kind, str) for kind in set(map(type, ids))):
        wrong = [ID for ID in ids if not isinstance(ID, str)]
        remedy = 'write IDs as texts, such as "007" in quotes, or df["id"].astype(str)'
        raise UserError(offence(f"{source}: IDs of '{name}' that are no text", wrong, remedy))
    joined = "\0".join(ids)
    if _UNSAFE.search(joined) or joined.count("\0") != len(ids) - 1:
        wrong = [ID for ID in ids if "\0" in ID or _UNSAFE.search(ID)]
        remedy = "an ID is a path below the root, without leading '/', '.', '..', empty parts or NUL: 'scans/007'"
        raise UserError(offence(f"{source}: IDs of '{name}' that are no path below the root", wrong, remedy))
    if not encodable(joined):
        wrong = [ID for ID in ids if not encodable(ID)]
        raise UserError(offence(f"{source}: IDs of '{name}' that are no valid Unicode", wrong, "rename them"))


def _check_labels(partition: Mapping[str, Sequence[str]], labels: Mapping[str, Any], source: str) -> tuple[str, ...]:
    """Checks that each ID has a label; returns a note on labels without an ID."""
    where = "labels.json" if source == "partition.json" else source
    for name, ids in partition.items():
        if missing := [ID for ID in ids if ID not in labels]:
            remedy = "add their labels, or take them out of the partition"
            raise UserError(offence(f"{where}: IDs of '{name}' without a label", missing, remedy))
    if len(labels) == sum(map(len, partition.values())):
        return ()
    used = {ID for ids in partition.values() for ID in ids}
    unused = [ID for ID in labels if ID not in used]
    return (offence(f"{where}: labels whose ID is in no partition", unused, "they are not used"),)


def _check_files(root: Path, partition: Mapping[str, Sequence[str]], suffix: str) -> None:
    """Lists each folder that holds samples once, since a stat for each file costs far more."""
    folders = {"", *(ID.rpartition("/")[0] for ids in partition.values() for ID in ids if "/" in ID)}
    irregular: set[str] = set()
    present = {name for folder in sorted(folders) for name in _listing(root, folder, suffix, irregular)}
    for name, ids in partition.items():
        if missing := [ID for ID in ids if ID not in present]:
            remedy = "add the files, or take the IDs out of the partition"
            if cause := _other_spelling(root, missing[0], suffix):
                remedy = cause
            elif held := sorted(path.name for path in (root / missing[0]).parent.glob("[!.]*")):
                remedy += f"\nIts folder holds, for example, {held[0]!r}"
            raise UserError(offence(f"{root}: IDs of '{name}' without a file ID{suffix}", missing, remedy))
        if irregular and (wrong := [ID for ID in ids if ID in irregular]):
            fault = f"{root}: IDs of '{name}' whose ID{suffix} is no regular file (a folder, a pipe, a broken link)"
            raise UserError(offence(fault, wrong, "replace it, or take the IDs out of the partition"))


def _other_spelling(root: Path, ID: str, suffix: str) -> str:
    """The remedy if the file of an ID exists and only the ID is spelled in another way; otherwise an empty text."""
    rules, plain = [], ID.removesuffix(suffix).replace("\\", "/")
    if ID.endswith(suffix):
        rules.append(f"without the ending {suffix}")
    if "\\" in ID:
        rules.append("with '/' between folders, not '\\'")
    for form in ("NFC", "NFD"):
        other = unicodedata.normalize(form, plain)
        if (root / f"{other}{suffix}").is_file():
            if other != plain:
                rules.append(f"in the Unicode form of the file names, unicodedata.normalize('{form}', ID)")
            return f"write IDs {', '.join(rules)}: there is {other}{suffix}" if rules else ""
    return ""


def _listing(root: Path, folder: str, suffix: str, irregular: set[str]) -> Iterator[str]:
    """IDs of the sample files in one folder; those that are no regular files are added to `irregular`."""
    prefix = f"{folder}/" if folder else ""
    try:
        with os.scandir(root / folder) as entries:
            for entry in entries:
                if entry.name.endswith(suffix):
                    ID = prefix + entry.name.removesuffix(suffix)
                    if not entry.is_file():
                        irregular.add(ID)
                    yield ID
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise UserError(f"{root / folder}: cannot be listed ({error.strerror}); check its permissions") from None


def _digest(labels: Mapping[str, Labels], targets: Targets) -> str:
    digest = hashlib.sha256(json.dumps([targets.task, targets.classes], default=str).encode())
    for name in sorted(labels):
        ids = labels[name].list_IDs
        digest.update(f"{name},{len(ids)};".encode())
        for start in range(0, len(ids), 65_536):
            digest.update(encode(ids, np.arange(start, min(start + 65_536, len(ids)))))
        digest.update(labels[name].tensor.numpy().tobytes())
    return digest.hexdigest()
