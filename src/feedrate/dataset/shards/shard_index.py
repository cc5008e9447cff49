"""The index of a folder of shards, `index.json`: its contents, its shards, and what they were made of."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from feedrate.config import nearby
from feedrate.dataset.catalog import Catalog
from feedrate.dataset.formats.memory import memory_of
from feedrate.dataset.ids import IDs, Labels
from feedrate.dataset.labels import Targets
from feedrate.dataset.shards.shard import Damaged, Form, Shard
from feedrate.errors import SampleError, UserError

NAME = "index.json"
FORMAT = "feedrate shards 2"
REMEDY = "Remove it and run the command that made the shards (python src/pack.py ...) again: it writes what is missing"


@dataclass(frozen=True)
class ShardEntry:
    """Name, number of samples and size of one shard, and the CRC-32 of its IDs and labels, which are read each time."""

    file: str
    samples: int
    bytes: int
    crc32: int


@dataclass(frozen=True)
class PartitionEntry:
    """The shards of one partition: sample i is row i % rows of shard i // rows."""

    samples: int
    rows: int
    shards: tuple[ShardEntry, ...]


@dataclass(frozen=True)
class Source:
    """What the shards were made of.

    Attributes:
        target: class of the dataset.
        root: its folder, None if it has none.
        suffix: the file of a sample is root/ID + suffix; None where samples are no such files.
        settings: hash of the keys that decide what the class yields.
        files: size and mtime_ns of the files of partition and labels, by name.
    """

    target: str
    root: str | None
    suffix: str | None
    settings: str
    files: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Index:
    """The content of index.json; `partition` is empty while the shards are being written.

    Attributes:
        digest: of the data, as in feedrate.dataset.Data.
    """

    digest: str
    task: str
    classes: tuple[Any, ...] | None
    num_outputs: int
    X: Form
    y: Form
    source: Source
    partition: Mapping[str, PartitionEntry]

    def as_json(self) -> bytes:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, ensure_ascii=False).encode()

    @classmethod
    def read(cls, root: Path, complete: bool = True) -> Index:
        """The index of a folder.

        Args:
            complete: False also takes that of a folder whose packing was interrupted.

        Raises:
            UserError: there is none, it cannot be read, or packing was interrupted.
        """
        path = root / NAME
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            index = TypeAdapter(cls).validate_python(value) if value["format"] == FORMAT else None
        except FileNotFoundError:
            remedy = f"name the folder that python src/pack.py has written{nearby(root)}"
            raise UserError(f"dataset.root={root}: holds no {NAME}; {remedy}") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
        except (ValueError, LookupError, TypeError):
            raise UserError(f"{path}: is damaged; remove the folder, and pack again") from None
        if index is None:
            raise UserError(f"{path}: is not of the format {FORMAT!r}; pack again into another folder")
        if complete and not index.partition:
            rule = "run the same command (python src/pack.py ...) again, which continues it"
            raise UserError(f"dataset.root={root}: packing is not complete; {rule}")
        return index

    def catalog(self, root: Path, task: str = "auto") -> Catalog:
        """Partition and labels from within the shards, whose size, header, IDs and labels are checked.

        Args:
            task: 'auto' takes the labels as they were packed.

        Raises:
            UserError: a shard is missing or damaged, or the labels do not fit the task.
        """
        packed, labels = {}, {}
        for name, part in self.partition.items():
            texts, ends, ys, base = [], [], [], 0
            for entry in part.shards:
                text, end, y = _names_and_labels(root, entry, self)
                texts.append(text)
                ends.append(end + base)
                base += len(text)
                ys.append(y)
            packed[name] = IDs.of(np.concatenate(texts), np.concatenate(ends))
            labels[name] = Labels(packed[name], torch.cat(ys))
        targets = Targets(self.task, self.classes, self.num_outputs)
        if task in ("auto", self.task):
            return Catalog(root, packed, labels, targets, self.digest, ())
        values = {ID: y for of in labels.values() for ID, y in zip(of, of.tensor.tolist(), strict=True)}
        if self.classes is not None:  # the labels as they were before they became classes
            values = {ID: self.classes[y[0] if isinstance(y, list) else y] for ID, y in values.items()}
        as_text = all(isinstance(name, str) for name in self.classes or (None,))
        return Catalog.of(root, packed, values, task=task, source=NAME, as_text=as_text)


def _names_and_labels(root: Path, entry: ShardEntry, index: Index) -> tuple[np.ndarray, np.ndarray, Tensor]:
    path = root / entry.file
    try:
        size = path.stat().st_size if path.is_file() else entry.bytes
        if size != entry.bytes:
            raise Damaged(f"has {size:,} bytes, not {entry.bytes:,}")
        shard = Shard(str(path), index.X)
        text, ends, y = (shard.tensor(name) for name in ("ID.text", "ID.ends", "y"))
        if names_crc(text, ends, y) != entry.crc32 or len(ends) != entry.samples:
            raise Damaged("is damaged: its IDs and labels do not match the CRC-32 in index.json")
    except Damaged as error:
        raise UserError(f"shard {path}: {error}\n{REMEDY}") from None
    return text.numpy(), ends.numpy(), y


def names_crc(text: Tensor, ends: Tensor, y: Tensor) -> int:
    """CRC-32 over IDs and labels."""
    crc = 0
    for part in (text, ends, y):
        crc = zlib.crc32(memory_of(part.contiguous()), crc)
    return crc


def sample_error(shard: Shard, list_IDs: Sequence[str], index: int, error: Damaged) -> SampleError:
    """The error for one sample of a damaged shard."""
    ID = list_IDs[index]
    return SampleError(f"sample {ID!r} (shard {shard.path}): {error}\n{REMEDY}", ID=ID, path=shard.path)
