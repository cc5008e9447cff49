"""Turns one big file of all (X, y) into a dataset folder: `root/ID.pt`, partition.json and labels.json.

Can be interrupted at any instant and started again. Reading the file, dividing it and writing samples have modules of
their own: big_file.py, split.py, sample_writer.py.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from feedrate.config import PrepareConfig, resolve_path
from feedrate.dataset.big_file import BigFile
from feedrate.dataset.sample_writer import TEMPORARY, numbered, serialized, write_file, write_samples
from feedrate.dataset.split import Indices, Parts, split
from feedrate.errors import UserError
from feedrate.system.cores import usable_cores
from feedrate.system.folder import Interrupted, locked
from feedrate.system.progress_bar import progress_bar
from feedrate.system.signals import signals_ignored

MANIFEST = "prepare.json"
WORTH_A_WORKER = 500  # samples; fewer are written before a further process has started


def prepare(config: PrepareConfig) -> dict[str, int]:
    """Writes the dataset folder, or what is missing of it; returns the number of samples of each partition.

    The order of events makes it safe: prepare.json, which says what belongs here, comes first; then the samples, each
    whole under its name; then labels.json and, when all else is on disk, partition.json. What is there is not
    written again, if prepare.json says that it came from the same file and settings.

    Raises:
        UserError: a setting, the file, its labels or the folder cannot be used.
        Interrupted: by Ctrl-C; the same call goes on.
    """
    if config.validation_fraction + config.test_fraction >= 1:
        raise UserError(
            f"validation_fraction={config.validation_fraction} and test_fraction={config.test_fraction}: "
            "leave nothing to train on; together they must be below 1"
        )
    path, root = resolve_path(config.source), resolve_path(config.root)
    source = BigFile.read(path)
    parts = split(source.y, config.validation_fraction, config.test_fraction, config.seed)
    manifest = _manifest(config, source)
    _check_root(root, source, manifest)

    try:
        state = _fill(root, source, parts, manifest, config.num_workers)
    except OSError as error:
        raise UserError(
            f"root={root}: cannot be written ({error.strerror or error})\n"
            "Make room, or choose another root; the same command goes on from what is written"
        ) from error
    sizes = {name: len(indices) for name, indices in parts.items()}
    print(f"{config.root} {state}: " + ", ".join(f"{count:,} {name}" for name, count in sizes.items()))
    print(f"Train on it: python src/train.py dataset=tensor_files dataset.root={config.root}")
    return sizes


def _fill(root: Path, source: BigFile, parts: Parts, manifest: Mapping[str, Any], num_workers: int | str) -> str:
    """Writes what is missing; says in words what there was to do."""
    root.mkdir(parents=True, exist_ok=True)
    with locked(root):
        _check_root(root, source, manifest)
        try:
            if not (root / MANIFEST).is_file():
                write_file(root / MANIFEST, _as_json(manifest), flush=True)
            missing = _clean(root, source)
            if not len(missing) and all((root / name).is_file() for name in ("labels.json", "partition.json")):
                return "is already done"
            _write_samples(source, missing, root, num_workers)
            _write_catalog(source, parts, root, manifest)
            return "is done"
        except KeyboardInterrupt:
            with signals_ignored():
                written = len(source) - len(_clean(root, source))
                raise Interrupted(f"{written:,} of {len(source):,} samples are written") from None
        except UserError:
            _clean(root, source)
            raise


# ---------------------------------------------------------------------------------------------------------
# what is there
# ---------------------------------------------------------------------------------------------------------


def _manifest(config: PrepareConfig, source: BigFile) -> dict[str, Any]:
    """What a folder was made from: as long as it is the same, files from before can stay."""
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


def _check_root(root: Path, source: BigFile, manifest: Mapping[str, Any]) -> None:
    """That the folder is new, empty, or was begun by the same command."""
    if not root.exists():
        return
    if not root.is_dir():
        raise UserError(f"root={root}: is a file; name a new folder")
    if source.path.parent == root and source.path.suffix == ".pt" and source.path.stem.isdigit():
        raise UserError(f"root={root}: a sample would overwrite the source {source.path.name}; choose another root")
    if (root / MANIFEST).is_file():
        try:
            found = json.loads((root / MANIFEST).read_text())
            differing = [key for key in manifest if found.get(key) != manifest[key]]
        except (ValueError, AttributeError):
            raise UserError(f"root={root}: its {MANIFEST} cannot be read; choose another root") from None
        if differing:
            key = next((key for key in differing if key in ("seed", "validation_fraction", "test_fraction")), "source")
            if key == "source":
                fault = f"was made from another {found.get('source')}, or from an earlier state of it"
            else:
                fault = f"was made with {key}={found.get(key)}, not {manifest[key]}"
            raise UserError(f"root={root}: {fault}; choose another root, or remove this folder")
        return
    foreign = [found.name for found in root.iterdir() if not found.name.startswith(".") and found != source.path]
    if foreign:
        shown = ", ".join(sorted(foreign)[:3]) + (", ..." if len(foreign) > 3 else "")
        raise UserError(f"root={root}: holds other files ({shown}; {len(foreign):,} in all); choose a new folder")


def _clean(root: Path, source: BigFile) -> Indices:
    """Removes what an interruption left, and returns the indices of the samples that are not there."""
    size = len(serialized(torch.zeros(source.sample_shape, dtype=source.sample_dtype)))
    present = set()
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.name.startswith(TEMPORARY):
                Path(entry.path).unlink()
            elif entry.name.endswith(".pt") and entry.stat().st_size == size:
                present.add(entry.name[:-3])
    ID_of = numbered(len(source))
    return np.fromiter((index for index in range(len(source)) if ID_of(index) not in present), dtype=np.int64)


# ---------------------------------------------------------------------------------------------------------
# what is written
# ---------------------------------------------------------------------------------------------------------


def _write_samples(source: BigFile, missing: Indices, root: Path, num_workers: int | str) -> None:
    if isinstance(num_workers, int):
        workers = min(num_workers, len(missing))
    else:
        workers = min(usable_cores(), len(missing) // WORTH_A_WORKER)
        workers = workers if workers > 1 else 0
    _check_room(source, len(missing), root)
    if len(missing):
        source.unpack(root, TEMPORARY)
    kept = len(source) - len(missing)
    with (
        progress_bar("samples", len(source), kept) as show,
        closing(write_samples(source, missing, root, workers)) as progress,
    ):
        for written in progress:
            show(kept + written)


def _write_catalog(source: BigFile, parts: Parts, root: Path, manifest: Mapping[str, Any]) -> None:
    stat = source.path.stat()
    if (stat.st_size, stat.st_mtime_ns) != (manifest["source_bytes"], manifest["source_mtime_ns"]):
        raise UserError(f"source={source.path}: was changed while it was read; remove {root} and start again")
    ID_of = numbered(len(source))
    labels = {ID_of(index): label for index, label in enumerate(source.y.tolist())}
    partition = {name: [ID_of(index) for index in indices.tolist()] for name, indices in parts.items()}
    _clean(root, source)
    write_file(root / "labels.json", _as_json(labels), flush=True)
    os.sync()  # one wait for all samples, instead of one for each: where partition.json is, everything is
    write_file(root / "partition.json", _as_json(partition), flush=True)


def _check_room(source: BigFile, count: int, root: Path) -> None:
    block = 4096
    one = math.prod(source.sample_shape) * source.sample_dtype.itemsize + 1_200
    needed = count * -(-one // block) * block + source.unpack_bytes
    free = shutil.disk_usage(root).free
    if needed > free:
        raise UserError(
            f"root={root}: {count:,} samples need {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free; "
            "make room, or choose another root"
        )


def _as_json(value: Any) -> bytes:
    return json.dumps(value).encode()
