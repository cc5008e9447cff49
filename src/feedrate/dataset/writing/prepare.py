"""Turns one big file of all (X, y) into a dataset folder: `root/ID.pt`, partition.json and labels.json.

It can be interrupted at any time; the same call continues from the samples that are written.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from feedrate.config import PrepareConfig, resolve_path
from feedrate.dataset.writing.big_file import BigFile
from feedrate.dataset.writing.output_folder import (
    PARTIAL,
    check_room,
    check_root,
    in_parallel,
    remove_partial,
    write_file,
    writing,
)
from feedrate.errors import UserError, offence
from feedrate.system.cores import usable_cores
from feedrate.system.folder import Interrupted
from feedrate.system.progress_bar import progress_bar
from feedrate.system.signals import signals_ignored

MANIFEST = "prepare.json"
_X = f"{PARTIAL}X.npy"  # the X of an .npz while samples are written
_MIN_SAMPLES = 500  # per worker process; fewer are written before another process has started
_REPORT_S = 0.1

Indices = NDArray[np.int64]


def prepare(config: PrepareConfig) -> dict[str, int]:
    """Writes the dataset folder, or the missing part of it; returns the number of samples of each partition.

    prepare.json, which records source and settings, is written first, then the samples, labels.json, and, once all of
    these are on disk, partition.json. Existing samples are kept if prepare.json matches.

    Raises:
        UserError: a setting, the file, its labels or the folder cannot be used.
        Interrupted: by Ctrl-C.
    """
    if config.validation_fraction + config.test_fraction >= 1:
        raise UserError(
            f"validation_fraction={config.validation_fraction} and test_fraction={config.test_fraction} "
            "leave nothing to train on; together they must be below 1"
        )
    source, root = BigFile.read(resolve_path(config.source)), resolve_path(config.root)
    parts = split(source.y, config.validation_fraction, config.test_fraction, config.seed)
    manifest = _manifest(config, source)
    _check_manifest(root, source, manifest)
    with writing(root):
        _check_manifest(root, source, manifest)
        if not (root / MANIFEST).is_file():
            write_file(root / MANIFEST, json.dumps(manifest).encode(), flush=True)
        missing = _missing(root, source)
        done = not len(missing) and all((root / name).is_file() for name in ("labels.json", "partition.json"))
        if not done:
            _fill(root, source, parts, missing, manifest, config.num_workers)
    sizes = {name: len(indices) for name, indices in parts.items()}
    state = "is already done" if done else "is done"
    print(f"{config.root} {state}: " + ", ".join(f"{count:,} {name}" for name, count in sizes.items()))
    print(f"Train on it: python src/train.py dataset=tensor_files dataset.root={config.root}")
    return sizes


def _fill(
    root: Path,
    source: BigFile,
    parts: Mapping[str, Indices],
    missing: Indices,
    manifest: Mapping[str, Any],
    num_workers: int | str,
) -> None:
    try:
        one = math.prod(source.sample_shape) * source.sample_dtype.itemsize + 1_200  # bytes of a file
        check_room(root, f"{len(missing):,} samples", len(missing) * -(-one // 4096) * 4096 + source.unpack_bytes)
        if isinstance(num_workers, int):
            workers = min(num_workers, len(missing))
        else:
            workers = min(usable_cores(), len(missing) // _MIN_SAMPLES)
        kept = len(source) - len(missing)
        with (
            progress_bar("samples", len(source), kept) as show,
            closing(write_samples(source, missing, root, workers)) as counts,
        ):
            for written in counts:
                show(kept + written)
        _write_catalog(source, parts, root, manifest)
    except KeyboardInterrupt:
        with signals_ignored():
            written = len(source) - len(_missing(root, source))
            raise Interrupted(f"{written:,} of {len(source):,} samples are written") from None
    except UserError:
        remove_partial(root)
        raise


def _manifest(config: PrepareConfig, source: BigFile) -> dict[str, Any]:
    """Source and settings that the samples in a folder depend on."""
    stat = source.path.stat()
    return {
        "source": source.path.name,
        "source_bytes": stat.st_size,
        "source_mtime_ns": stat.st_mtime_ns,
        "samples": len(source),
        "sample_shape": list(source.sample_shape),
        "sample_dtype": str(source.sample_dtype).removeprefix("torch."),
        "validation_fraction": config.validation_fraction,
        "test_fraction": config.test_fraction,
        "seed": config.seed,
    }


def _check_manifest(root: Path, source: BigFile, manifest: Mapping[str, Any]) -> None:
    """Checks that the folder is new, empty, or was started by the same command."""
    check_root(root, MANIFEST, source.path)
    if source.path.parent == root and source.path.suffix == ".pt" and source.path.stem.isdigit():
        raise UserError(f"root={root}: a sample would overwrite the source {source.path.name}; choose another root")
    if not (root / MANIFEST).is_file():
        return
    try:
        found = dict(json.loads((root / MANIFEST).read_text()))
    except (ValueError, TypeError):
        raise UserError(f"root={root}: its {MANIFEST} cannot be read; choose another root") from None
    for key in ("seed", "validation_fraction", "test_fraction", *manifest):
        if found.get(key) != manifest[key]:
            fault = f"with {key}={found.get(key)}, not {manifest[key]}"
            raise UserError(f"root={root}: was made {fault}; choose another root, or remove this folder")


def _missing(root: Path, source: BigFile) -> Indices:
    """Removes partial files and returns the indices of the samples that have no file of the right size."""
    remove_partial(root)
    size = len(_serialized(torch.zeros(source.sample_shape, dtype=source.sample_dtype)))
    with os.scandir(root) as entries:
        present = {entry.name for entry in entries if entry.name.endswith(".pt") and entry.stat().st_size == size}
    ID_of = _numbering(len(source))
    return np.array([index for index in range(len(source)) if f"{ID_of(index)}.pt" not in present], dtype=np.int64)


def _numbering(count: int) -> Callable[[int], str]:
    """The ID of a sample: its position in the big file, with as many digits as the last one has."""
    return f"{{:0{len(str(count - 1))}d}}".format


def _serialized(X: Tensor) -> bytes:
    """The file of one sample. Written to memory, since torch.save to a path stores the file's name in it."""
    buffer = io.BytesIO()
    torch.save(X.clone(memory_format=torch.contiguous_format), buffer)  # a view would store the whole X
    return buffer.getvalue()


def write_samples(source: BigFile, indices: Indices, root: Path, num_workers: int) -> Generator[int, None, None]:
    """Writes `root/ID.pt` for the samples at `indices`, and yields how many are written a few times per second.

    Args:
        num_workers: processes that write; 0 or 1 write in this one. Closing the generator kills them.

    Raises:
        UserError: the source cannot be read any more, or a worker was killed.
        OSError: a file cannot be written.
    """
    if len(indices):
        source.unpack(root / _X)
    written: dict[int, int] = {}
    parts = np.array_split(indices, max(1, num_workers))
    with closing(in_parallel(partial(_write, source=source, root=root), parts)) as counts:
        for worker, count in counts:
            written[worker] = count
            yield sum(written.values())


def _write(indices: Indices, source: BigFile, root: Path) -> Iterator[int]:
    if not len(indices):
        return
    X, ID_of = source.open_X(root / _X), _numbering(len(source))
    reported = time.monotonic()
    for count, index in enumerate(indices.tolist(), start=1):
        write_file(root / f"{ID_of(index)}.pt", _serialized(X[index]))
        if (now := time.monotonic()) - reported > _REPORT_S:
            yield count
            reported = now
    yield len(indices)


def _write_catalog(source: BigFile, parts: Mapping[str, Indices], root: Path, manifest: Mapping[str, Any]) -> None:
    stat = source.path.stat()
    if (stat.st_size, stat.st_mtime_ns) != (manifest["source_bytes"], manifest["source_mtime_ns"]):
        raise UserError(f"source={source.path}: changed while it was read; remove {root} and start again")
    ID_of = _numbering(len(source))
    labels = {ID_of(index): label for index, label in enumerate(source.y)}
    partition = {name: [ID_of(index) for index in indices.tolist()] for name, indices in parts.items()}
    remove_partial(root)
    write_file(root / "labels.json", json.dumps(labels).encode(), flush=True)
    os.sync()  # one wait for all samples: where partition.json exists, everything is on disk
    write_file(root / "partition.json", json.dumps(partition).encode(), flush=True)


def split(y: Sequence[Any], validation_fraction: float, test_fraction: float, seed: int) -> dict[str, Indices]:
    """Ascending sample indices of 'train', 'validation' and, unless its fraction is 0, 'test'; stratified by class.

    Labels that are no float and no list are classes: each keeps its share to within one sample, with at least one
    sample in 'train' and one in 'validation' (scikit-learn's train_test_split refuses small classes). Others are split
    at random.

    Raises:
        UserError: too few samples, or a class with a single one.
    """
    total, needed = len(y), 3 if test_fraction else 2
    if total < needed:
        raise UserError(f"source: has {total} samples; {needed} are needed, one for each partition")
    classes = np.zeros(total, dtype=np.int64)
    if not any(isinstance(label, (float, list)) for label in y):
        names, classes = np.unique(np.asarray(y), return_inverse=True)
        if lone := names[np.bincount(classes) < 2].tolist():
            remedy = "take them out or merge classes, since each needs two samples; save a quantity as float"
            raise UserError(offence("source: classes with a single sample", lone, remedy))
    sizes = np.bincount(classes)
    validation = _shares(sizes, validation_fraction).clip(1, sizes - 1)
    test = _shares(sizes, test_fraction).clip(0, sizes - 1 - validation)
    if test_fraction and not test.any():
        largest = int(np.argmax(sizes))
        if sizes[largest] < 3:
            raise UserError(f"test_fraction={test_fraction}: no class has a third sample to test on; set it to 0")
        test[largest] = 1
        validation[largest] = min(validation[largest], sizes[largest] - 2)

    key = hashlib.blake2b(f"{seed}".encode(), digest_size=16, person=b"feedrate split").digest()
    shuffled = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"))).permutation(total)
    by_class = shuffled[np.argsort(classes[shuffled], kind="stable")]
    rank = np.arange(total) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # of each sample within its class
    held_out = (validation + test)[classes[by_class]]
    in_validation, in_train = rank < validation[classes[by_class]], rank >= held_out
    parts = {"train": in_train, "validation": in_validation}
    if test_fraction:
        parts["test"] = ~in_train & ~in_validation
    return {name: np.sort(by_class[chosen]) for name, chosen in parts.items()}


def _shares(sizes: Indices, fraction: float) -> Indices:
    """Samples of each class, by the largest remainders, so that their sum is the fraction of all."""
    exact = sizes * fraction
    shares: Indices = np.floor(exact + 1e-9).astype(np.int64)
    left = round(float(sizes.sum()) * fraction) - int(shares.sum())
    if left > 0:
        shares[np.argsort(shares - exact, kind="stable")[:left]] += 1
    return shares
