"""Reads samples from files of one tensor each, payloads straight into their place in the batch.

A file without a known layout is loaded by torch.load or np.load.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from feedrate.dataset.formats.file_layout import MAX_BYTES, Recogniser
from feedrate.dataset.formats.scatter import FLAGS, Scatter
from feedrate.dataset.storage.paths import Paths
from feedrate.errors import SampleError
from feedrate.timing.stages import stage

Empty = Callable[[tuple[int, ...], torch.dtype], Tensor]
LAYOUTS = 1024  # most layouts that are learned; one takes a few kilobytes, and that of a large file counts as several
UNUSABLE = 16  # a file without a usable layout counts as this many


class SampleReader:
    """Reads files that hold one tensor each; the first file of each layout is learned, so that others are read fast.

    Args:
        load: `(path, ID) -> Tensor`, for files without a known layout; raises SampleError.
        learn: returns the recogniser of a file's layout from its bytes, or None.
        verify: compare each payload with the CRC-32 in its file, if any.
        at_once: use io_uring where available.

    Safe to use from several threads; layouts are not pickled.
    """

    def __init__(
        self,
        load: Callable[[str, str], Tensor],
        learn: Callable[[bytes], Recogniser | None],
        verify: bool = False,
        at_once: bool = True,
    ) -> None:
        self._load, self._learn, self._verify = load, learn, verify
        self._scatter = Scatter(verify, at_once)
        # by length of the path, since an archive usually contains the file's name, which moves all that follows, and
        # by size of the file; the expected layout first
        self._known: dict[int, dict[int, list[Recogniser]]] = {}
        self._left = LAYOUTS

    def __reduce__(self) -> tuple[Any, ...]:
        return SampleReader, (self._load, self._learn, self._verify, self._scatter.at_once)

    def read(self, path: str, ID: str) -> Tensor:
        """One sample, in memory of its own.

        Raises:
            SampleError: the file is missing, damaged, or holds no single tensor.
        """
        X = self._recognised(path)
        if X is None:
            with stage("decode"):
                X = self._load(path, ID)
            if self._verify:
                check_crc(path, ID)
        return X

    def read_batch(self, paths: Sequence[str], IDs: Sequence[str], empty: Empty) -> Tensor | list[Tensor]:
        """Many samples, (n, ...) in memory from `empty(shape, dtype)`; a list where shapes or dtypes differ.

        Raises:
            SampleError: as `read`, for the first of them that cannot be read.
        """
        out, good = None, np.zeros(len(paths), dtype=bool)
        if (only := self._only(paths)) is not None:
            out = empty((len(paths), *only.shape), only.dtype)
            good = self._scatter.read(only, paths, None, out)
            return out if good.all() else self._completed(paths, IDs, empty, out, good)
        groups = self._expected(paths)
        forms = {(known.shape, known.dtype) for known in groups}
        if len(forms) == 1:  # else nothing is known, or shapes differ
            ((shape, dtype),) = forms
            out = empty((len(paths), *shape), dtype)
            for known, rows in groups.items():
                chosen = paths if len(rows) == len(paths) else [paths[row] for row in rows.tolist()]
                good[rows] = self._scatter.read(known, chosen, rows, out)
        return self._completed(paths, IDs, empty, out, good)

    def _completed(
        self, paths: Sequence[str], IDs: Sequence[str], empty: Empty, out: Tensor | None, good: np.ndarray
    ) -> Tensor | list[Tensor]:
        """The batch `out` with the samples that are not good yet, each read by itself; a list where shapes differ."""
        if out is not None and good.all():
            return out
        out = out if good.any() else None
        single = {row: self.read(paths[row], IDs[row]) for row in np.flatnonzero(~good).tolist()}
        first = next(iter(single.values())) if out is None else out[0]
        if any(X.shape != first.shape or X.dtype != first.dtype for X in single.values()):
            return [single[row] if out is None or row in single else out[row].clone() for row in range(len(paths))]
        if out is None:
            out = empty((len(paths), *first.shape), first.dtype)
        for row, X in single.items():
            out[row] = X
        return out

    def _only(self, paths: Sequence[str]) -> Recogniser | None:
        """The expected layout of all these files, where there is one for paths of their length."""
        if not isinstance(paths, Paths) or paths.length is None:
            return None
        sizes = self._known.get(paths.length, {})
        return next(iter(sizes.values()))[0] if len(sizes) == 1 else None

    def _expected(self, paths: Sequence[str]) -> dict[Recogniser, np.ndarray]:
        """The rows of the files by their expected layout."""
        rows: dict[Recogniser, list[int]] = {}
        for row, path in enumerate(paths):
            sizes = self._known.get(_length(path), {})
            try:
                size = min(sizes) if len(sizes) == 1 else Path(path).stat().st_size
                rows.setdefault(sizes[size][0], []).append(row)
            except (KeyError, OSError):
                continue
        return {known: np.array(numbers) for known, numbers in rows.items()}

    def _recognised(self, path: str) -> Tensor | None:
        """One file of a known layout; None, and its layout is learned, where it is a new one."""
        sizes = self._known.get(_length(path), {})
        try:
            file = os.open(path, FLAGS)
            try:
                size = os.fstat(file).st_size
                similar = sizes.get(size, [])
                raw = np.empty(size if similar or (self._left > 0 and size <= MAX_BYTES) else 0, dtype=np.uint8)
                if not len(raw) or os.preadv(file, (raw.data,), 0) != size:
                    return None
            finally:
                os.close(file)
        except OSError:  # `load` explains it
            return None
        for known in similar:
            frame, payload = known.parts(raw)
            if known.alone(frame):
                if known is not similar[0]:
                    sizes[size] = [known, *(other for other in similar if other is not known)]
                return known.tensor(payload) if not self._verify or known.matches_crc(frame, payload.data) else None
        if self._left > 0:
            with stage("decode"):
                new = self._learn(raw.tobytes())
            self._left -= UNUSABLE if new is None else 1 + (size >> 20)
            if new is not None:
                self._known.setdefault(_length(path), {})[size] = [new, *similar]
        return None


def check_crc(path: str, ID: str) -> None:
    """Compares the content of a file of torch.save's with the CRC-32s in it, which torch.load ignores.

    Raises:
        SampleError: they differ.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for record in archive.infolist():
                if record.CRC:  # 0 is what torch.serialization.set_crc32_options(False) writes
                    archive.read(record)
    except Exception:  # zipfile raises many types for damaged files
        text = "its bytes do not match the CRC-32 in it (dataset.verify=crc)"
        raise SampleError(
            f"sample {ID!r} ({path}): {text}; restore it, or take the ID out of the partition", ID=ID, path=path
        ) from None


def _length(path: str) -> int:
    return len(os.fsencode(path))


def fresh(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An `empty` that allocates new memory."""
    return torch.empty(shape, dtype=dtype)
