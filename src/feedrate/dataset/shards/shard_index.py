"""The index of a folder of shards, `index.json`: what the shards hold, which there are, and what they were made of.

Reading samples out of them is shard.py's affair, writing them shard_writer.py's.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from feedrate.dataset.catalog import Catalog
from feedrate.dataset.ids import IDs, Labels
from feedrate.dataset.labels import Targets
from feedrate.dataset.shards.shard import Damaged, Form, Shard, first_row_beyond
from feedrate.errors import SampleError, UserError

NAME = "index.json"
FORMAT = "feedrate shards 1"
REMEDY = "Remove it and give the command that made the shards (python src/pack.py ...) again: it writes what is missing"


@dataclass(frozen=True)
class ShardEntry:
    """One shard.

    Attributes:
        file: its name.
        samples: how many it holds.
        bytes: its size.
        sha256: of the whole file, 64 hexadecimal digits.
        crc32: of IDs and labels, which are read each time.
    """

    file: str
    samples: int
    bytes: int
    sha256: str
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
        files: size, mtime_ns and SHA-256 of the files of partition and labels, by name.
    """

    target: str
    root: str | None
    suffix: str | None
    settings: str
    files: Mapping[str, tuple[int, int, str]]


@dataclass(frozen=True)
class Index:
    """All of it. `partition` is empty while the shards are being written.

    Attributes:
        digest: of the data, as feedrate.dataset.Data has it: that of the files.
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
    def read(cls, root: Path) -> Index:
        """The index of a folder; see `complete`.

        Raises:
            UserError: there is none, or it cannot be read.
        """
        path = root / NAME
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            if value.pop("format") != FORMAT:
                raise UserError(f"{path}: is not of the format {FORMAT!r}; pack anew into another folder")
            form = {key: Form(**{**value[key], "shape": tuple(value[key]["shape"])}) for key in ("X", "y")}
            partition = {
                name: PartitionEntry(part["samples"], part["rows"], tuple(ShardEntry(**s) for s in part["shards"]))
                for name, part in value["partition"].items()
            }
            files = {name: (int(f[0]), int(f[1]), str(f[2])) for name, f in value["source"]["files"].items()}
            source = Source(**{**value["source"], "files": files})
            classes = None if value["classes"] is None else tuple(value["classes"])
            return cls(**{**value, **form, "partition": partition, "source": source, "classes": classes})
        except FileNotFoundError:
            raise UserError(
                f"dataset.root={root}: holds no {NAME}, so no shards; python src/pack.py dataset=... makes them"
            ) from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
        except UserError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise UserError(f"{path}: is damaged; remove the folder, and pack anew") from None

    @classmethod
    def complete(cls, root: Path) -> Index:
        """The index of a folder whose shards are all written.

        Raises:
            UserError: as `read`, or packing was interrupted.
        """
        index = cls.read(root)
        if not index.partition:
            raise UserError(
                f"dataset.root={root}: packing has not come to its end; give the same command (python src/pack.py ...) "
                "again, which goes on from there"
            )
        return index

    def shards(self, root: Path, partition: str, access: str) -> list[Shard]:
        """Those of a partition, unopened."""
        return [Shard(f"{root}/{entry.file}", self.X, access) for entry in self.partition[partition].shards]

    def catalog(self, root: Path, task: str = "auto") -> Catalog:
        """Partition and labels from within the shards; each of these is looked at: size, header, IDs, labels.

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
        found = Catalog(root, packed, labels, targets, self.digest, ())
        if task in ("auto", self.task):
            return found
        values = {name: [self._value(v) for v in of.tensor.tolist()] for name, of in labels.items()}
        flat = {ID: v for name, ids in packed.items() for ID, v in zip(ids, values[name], strict=True)}
        as_text = all(isinstance(name, str) for name in self.classes or (None,))
        return replace(Catalog.of(root, packed, flat, task=task, source=NAME, as_text=as_text), root=root)

    def _value(self, label: Any) -> Any:
        """A label as it was before it became a class."""
        if self.classes is None:
            return label
        return self.classes[label[0] if isinstance(label, list) else label]


def _names_and_labels(root: Path, entry: ShardEntry, index: Index) -> tuple[np.ndarray, np.ndarray, Tensor]:
    path = root / entry.file
    try:
        size = path.stat().st_size
    except OSError as error:
        why = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror or error})"
        raise UserError(f"shard {path}: {why}\n{REMEDY}") from None
    if size != entry.bytes:
        row = first_row_beyond(str(path)) if size < entry.bytes else None
        from_there = f", from sample {_ID_of(path, row)!r} on" if row is not None else ""
        raise UserError(f"shard {path}: has {size:,} bytes, not {entry.bytes:,}{from_there}\n{REMEDY}")
    shard = Shard(str(path), index.X)
    try:
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
        crc = zlib.crc32(memoryview(part.contiguous().reshape(-1).view(torch.uint8).numpy().data), crc)
    return crc


def _ID_of(path: Path, row: int) -> str:
    """From the file's beginning, where IDs may still be; otherwise the row's number."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            parts = []
            for name in ("ID.ends", "ID.text"):
                begin, end = (8 + length + at for at in header[name]["data_offsets"])
                file.seek(begin)
                parts.append(file.read(end - begin))
        return IDs.of(np.frombuffer(parts[1], np.uint8), np.frombuffer(parts[0], np.int64))[row]
    except (OSError, ValueError, LookupError):
        return f"number {row}"


def sample_error(shard: Shard, IDs_: Sequence[str], index: int, error: Damaged) -> SampleError:
    """What is wrong with one sample of a shard."""
    ID = IDs_[index]
    return SampleError(f"sample {ID!r} (shard {shard.path}): {error}\n{REMEDY}", ID=ID, path=shard.path)
