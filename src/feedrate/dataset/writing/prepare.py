"""Turns one big file of all (X, y) into a dataset folder: `root/ID.pt`, partition.json and labels.json.

It can be interrupted at any time; the same call continues from the samples that are written.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from feedrate.config import PrepareConfig, resolve_path
from feedrate.dataset.writing.big_file import read_big_file
from feedrate.dataset.writing.output_folder import check_room, check_root, write_file, writing
from feedrate.errors import UserError
from feedrate.system.cores import usable_cores
from feedrate.system.processes import in_processes
from feedrate.system.progress_bar import progress_bar

MANIFEST = "prepare.json"  # source and settings that the samples in a folder depend on
_MIN_SAMPLES = 500  # per worker process; fewer are written before another process has started
_REPORTED = 64  # samples between two reports of progress

Indices = NDArray[np.int64]


def prepare(config: PrepareConfig) -> dict[str, int]:
    """Writes the dataset folder, or the missing part of it; returns the number of samples of each partition.

    prepare.json is written first, then the samples, labels.json, and, once all of these are on disk, partition.json.
    Existing samples are kept if prepare.json matches.

    Raises:
        UserError: a setting, the file, its labels or the folder cannot be used.
        KeyboardInterrupt: by Ctrl-C.
    """
    path, root = resolve_path(config.source), resolve_path(config.root)
    manifest = _manifest(config, path) if path.is_file() else {}
    X, y = read_big_file(path)
    parts = split(y, config.validation_fraction, config.test_fraction, config.seed)
    _check_manifest(root, path, manifest)
    with writing(root):
        if not (root / MANIFEST).is_file():
            write_file(root / MANIFEST, json.dumps(manifest).encode(), flush=True)
        missing = _missing(root, X)
        done = not len(missing) and (root / "partition.json").is_file()
        if not done:
            check_room(root, f"{len(missing):,} samples", len(missing) * -(-len(_serialized(X[0])) // 4096) * 4096)
            _write_samples(X, missing, root, config.num_workers)
            if _manifest(config, path) != manifest:
                raise UserError(f"source={path}: changed while it was read; remove {root} and start again")
            ID_of = _numbering(len(y))
            partition = {name: [ID_of(index) for index in indices.tolist()] for name, indices in parts.items()}
            labels = {ID_of(index): label for index, label in enumerate(y)}
            write_file(root / "labels.json", json.dumps(labels).encode(), flush=True)
            os.sync()  # one wait for all samples: where partition.json exists, everything is on disk
            write_file(root / "partition.json", json.dumps(partition).encode(), flush=True)
    sizes = {name: len(indices) for name, indices in parts.items()}
    state = "is already done" if done else "is done"
    print(f"{config.root} {state}: " + ", ".join(f"{count:,} {name}" for name, count in sizes.items()))
    print(f"Train on it: python src/train.py dataset=tensor_files dataset.root={config.root}")
    return sizes


def _manifest(config: PrepareConfig, path: Path) -> dict[str, Any]:
    stat = path.stat()
    return {
        "source": path.name,
        "source_bytes": stat.st_size,
        "source_mtime_ns": stat.st_mtime_ns,
        "validation_fraction": config.validation_fraction,
        "test_fraction": config.test_fraction,
        "seed": config.seed,
    }


def _check_manifest(root: Path, path: Path, manifest: dict[str, Any]) -> None:
    """Checks that the folder is new, empty, or was started by the same command."""
    check_root(root, MANIFEST, path)
    if path.parent == root and path.suffix == ".pt" and path.stem.isdigit():
        raise UserError(f"root={root}: a sample would overwrite the source {path.name}; choose another root")
    if not (root / MANIFEST).is_file():
        return
    try:
        found = dict(json.loads((root / MANIFEST).read_text()))
    except (ValueError, TypeError):
        found = {}
    for key, value in reversed(manifest.items()):
        if found.get(key) != value:
            fault = f"with {key}={found.get(key)}, not {value}"
            raise UserError(f"root={root}: was made {fault}; choose another root, or remove this folder")


def _missing(root: Path, X: Tensor) -> Indices:
    """The indices of the samples that have no file of the right size."""
    size, ID_of = len(_serialized(torch.zeros_like(X[0]))), _numbering(len(X))
    with os.scandir(root) as entries:
        present = {entry.name for entry in entries if entry.name.endswith(".pt") and entry.stat().st_size == size}
    return np.array([index for index in range(len(X)) if f"{ID_of(index)}.pt" not in present], dtype=np.int64)


def _numbering(count: int) -> Callable[[int], str]:
    """The ID of a sample: its position in the big file, with as many digits as the last one has."""
    return f"{{:0{len(str(count - 1))}d}}".format


def _serialized(X: Tensor) -> bytes:
    """The file of one sample. Written to memory, since torch.save to a path stores the file's name in it."""
    buffer = io.BytesIO()
    torch.save(X.clone(memory_format=torch.contiguous_format), buffer)  # a view would store the whole X
    return buffer.getvalue()


def _write_samples(X: Tensor, indices: Indices, root: Path, num_workers: int | str) -> None:
    """Writes `root/ID.pt` for the samples at `indices`."""
    workers = num_workers if isinstance(num_workers, int) else min(usable_cores(), len(indices) // _MIN_SAMPLES)
    parts, kept = np.array_split(indices, max(1, min(workers, len(indices)))), len(X) - len(indices)
    written = dict.fromkeys(range(len(parts)), 0)
    work = partial(_write, X=X, root=root)
    try:
        with progress_bar("samples", len(X), kept) as show, closing(in_processes(work, parts)) as counts:
            for worker, count in counts:
                written[worker] = count
                show(kept + sum(written.values()))
    except KeyboardInterrupt:
        count = len(X) - len(_missing(root, X))
        raise KeyboardInterrupt(
            f"interrupted: {count:,} of {len(X):,} samples are written; the same command goes on from there"
        ) from None


def _write(indices: Indices, X: Tensor, root: Path) -> Iterator[int]:
    """Writes samples; yields now and then how many are written."""
    ID_of = _numbering(len(X))
    for count, index in enumerate(indices.tolist(), start=1):
        write_file(root / f"{ID_of(index)}.pt", _serialized(X[index]))
        if count % _REPORTED == 0 or count == len(indices):
            yield count


def split(y: Sequence[Any], validation_fraction: float, test_fraction: float, seed: int) -> dict[str, Indices]:
    """Ascending sample indices of 'train', 'validation' and, unless its fraction is 0, 'test'.

    Labels that are no float and no list are classes: each has its share of a partition to within one sample, also
    where it has too few samples for scikit-learn's train_test_split. Others are split at random.

    Raises:
        UserError: a partition would be empty.
    """
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(y))
    if not any(isinstance(label, (float, list)) for label in y):
        classes = np.unique(np.asarray(y), return_inverse=True)[1]
        order = order[np.argsort(classes[order], kind="stable")]
    chosen, order = _every(order, test_fraction)
    parts = {"test": chosen} if test_fraction else {}
    parts["validation"], parts["train"] = _every(order, validation_fraction / (1 - test_fraction))
    if empty := [name for name, indices in parts.items() if not len(indices)]:
        settings = f"validation_fraction={validation_fraction}, test_fraction={test_fraction}"
        raise UserError(f"{settings}: no sample of {len(y)} is left for {empty[0]}; change the fractions")
    return {name: np.sort(parts[name]) for name in ("train", "validation", "test") if name in parts}


def _every(order: Indices, fraction: float) -> tuple[Indices, Indices]:
    """A fraction of the elements at equal distances, and the others."""
    steps = np.floor(np.arange(len(order) + 1) * fraction + 0.5)
    chosen = np.diff(steps) > 0
    return order[chosen], order[~chosen]
