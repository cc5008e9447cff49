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

from feedrate.dataset.formats.file_layout import MAX_BYTES, Layout, Recogniser, parts_of
from feedrate.dataset.formats.file_template import Template
from feedrate.dataset.formats.memory import memory_of
from feedrate.dataset.formats.scatter import FLAGS, Scatter, differs_from_crc
from feedrate.dataset.storage.paths import Paths
from feedrate.errors import SampleError
from feedrate.timing.stages import stage

Empty = Callable[[tuple[int, ...], torch.dtype], Tensor]
LAYOUTS = 4096  # kept at most, a few kilobytes each
TEMPLATES = 256  # kept at most for names of one length
TRIES = 64  # files without a usable layout before learning stops


class SampleReader:
    """Reads files that hold one tensor each.

    Args:
        load: `(path, ID) -> Tensor`, for files without a known layout; raises SampleError.
        learn: returns the layout of a file from its bytes, or None.
        vary: returns a template from a file's bytes and its layout, or None.
        verify: compare each payload with the CRC-32 in its file, if any.
        at_once: use io_uring where available.

    Safe to use from several threads; layouts are not pickled.
    """

    def __init__(
        self,
        load: Callable[[str, str], Tensor],
        learn: Callable[[bytes], Layout | None],
        vary: Callable[[bytes, Layout], Template | None] | None = None,
        verify: bool = False,
        at_once: bool = True,
    ) -> None:
        self._load, self._learn, self._vary, self._verify = load, learn, vary, verify
        self._scatter = Scatter(verify, at_once)
        self._forget()

    def _forget(self) -> None:
        # by length of the path, since an archive usually contains the file's name, which moves all that follows
        self._by_name: dict[int, dict[int, Recogniser]] = {}
        self._by_size: dict[int, list[Recogniser]] = {}
        self._templates: dict[int, list[Template]] = {}  # by length of the path
        self._layouts = self._misses = 0

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("_load", "_learn", "_vary", "_verify", "_scatter")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def read(self, path: str, ID: str) -> Tensor:
        """One sample, in memory of its own.

        Raises:
            SampleError: the file is missing, damaged, or holds no single tensor.
        """
        X = self._single(path, ID)
        return self._one(path, ID) if X is None else X

    def read_batch(self, paths: Sequence[str], IDs: Sequence[str], empty: Empty) -> Tensor | list[Tensor]:
        """Many samples, (n, ...) in memory from `empty(shape, dtype)`; a list where shapes or dtypes differ.

        Raises:
            SampleError: as `read`, for the first of them that cannot be read.
        """
        if (known := self._sole(paths)) is not None:
            out = empty((len(paths), *known.layout.shape), known.layout.dtype)
            good = self._scatter.read(known, paths, None, out)
        else:
            groups = self._groups(paths)
            form = max(groups, key=lambda known: len(groups[known])).layout if groups else None
            same = {known: rows for known, rows in groups.items() if form is not None and known.layout.same_form(form)}
            if form is None or 2 * sum(map(len, same.values())) < len(paths):  # most have no common layout
                return self._stacked({row: self.read(paths[row], IDs[row]) for row in range(len(paths))}, None, empty)
            out = empty((len(paths), *form.shape), form.dtype)
            good = np.zeros(len(paths), dtype=bool)
            for known, rows in same.items():
                good[rows] = self._scatter.read(known, [paths[row] for row in rows.tolist()], rows, out)
        if good.all():
            return out
        single = {row: self.read(paths[row], IDs[row]) for row in np.flatnonzero(~good).tolist()}
        return self._stacked(single, None if len(single) == len(paths) else out, empty)

    def _sole(self, paths: Sequence[str]) -> Recogniser | None:
        """The expected layout of all files, where only one is known for their length of path; else None."""
        length = paths.length if isinstance(paths, Paths) else None
        if length is None:
            lengths = set(map(_length, paths))
            if len(lengths) != 1:
                return None
            (length,) = lengths
        seen = [*self._by_name.get(length, {}).values()]  # a copy, as other threads may add to it
        return seen[0] if len(seen) == 1 else None

    def _groups(self, paths: Sequence[str]) -> dict[Recogniser, np.ndarray]:
        """The rows of the files by their expected layout."""
        groups: dict[Recogniser, list[int]] = {}
        for row, path in enumerate(paths):
            if (known := self._expected(path)) is not None:
                groups.setdefault(known, []).append(row)
        return {known: np.array(rows) for known, rows in groups.items()}

    def _expected(self, path: str) -> Recogniser | None:
        """The expected layout of a file, by length of path and size."""
        sizes = self._by_name.get(_length(path))
        if sizes is None:
            return None
        if len(sizes) == 1:
            return next(iter(sizes.values()))
        try:
            return sizes.get(Path(path).stat().st_size)
        except OSError:
            return None

    def _single(self, path: str, ID: str) -> Tensor | None:
        """One file of a known layout or template, with few Python calls; None where it has neither."""
        length = _length(path)
        sizes = self._by_name.get(length)
        if sizes is None:
            return None
        try:
            file = os.open(path, FLAGS)
            try:
                size = os.fstat(file).st_size
                known = sizes.get(size)
                if known is not None and (X := self._by_layout(file, known)) is not None:
                    return X
                fit = [template for template in self._templates.get(length, ()) if template.fits(size)]
                raw = bytearray(size if fit and size <= MAX_BYTES else 0)
                if not raw or os.preadv(file, [raw], 0) != size:
                    return None
            finally:
                os.close(file)
        except OSError:
            return None
        return self._by_template(fit, raw, path, ID)

    def _by_layout(self, file: int, known: Recogniser) -> Tensor | None:
        X = torch.empty(known.layout.shape, dtype=known.layout.dtype)
        content, first = memory_of(X), len(known.layout.head)
        frame = bytearray(known.size - known.nbytes)
        parts = memoryview(frame)
        if os.preadv(file, (parts[:first], content, parts[first:]), 0) != known.size:
            return None
        if not known.alone(bytes(frame)):
            return None
        return None if self._verify and differs_from_crc(known.layout, frame, content) else X

    def _by_template(self, fit: Sequence[Template], raw: bytearray, path: str, ID: str) -> Tensor | None:
        for template in fit:
            frame, content = parts_of(raw, template.first, template.frame_bytes)
            shape = template.shape(frame, len(content))
            if shape is None or (self._verify and differs_from_crc(template.layout, frame, content)):
                continue
            X = torch.frombuffer(content, dtype=template.layout.dtype).view(shape)
            if template.confirmed:
                return X
            right = self._load(path, ID)
            same = right.shape == X.shape and right.dtype == X.dtype
            template.confirmed = same and memory_of(right.contiguous()) == content
            if not template.confirmed:
                length = _length(path)
                self._templates[length] = [other for other in self._templates[length] if other is not template]
            return right
        return None

    def _one(self, path: str, ID: str) -> Tensor:
        """A file without the expected layout: of another known or new one, or loaded by `load`."""
        raw = self._whole(path)
        with stage("decode"):
            known = self._recognise(path, raw) if raw is not None else None
            if raw is not None and known is not None:
                frame, content = known.parts(raw)
                if not (self._verify and differs_from_crc(known.layout, frame, content)):
                    return known.tensor(content)
            X = self._load(path, ID)
        if self._verify:
            check_crc(path, ID)
        return X

    @staticmethod
    def _stacked(single: dict[int, Tensor], out: Tensor | None, empty: Empty) -> Tensor | list[Tensor]:
        """The batch of the samples by row in `single`, and the other rows of `out`."""
        first = next(iter(single.values()))
        shape, dtype = (first.shape, first.dtype) if out is None else (out.shape[1:], out.dtype)
        if any(X.shape != shape or X.dtype != dtype for X in single.values()):
            count = len(single) if out is None else len(out)
            return [single[row] if out is None or row in single else out[row].clone() for row in range(count)]
        if out is None:
            out = empty((len(single), *shape), dtype)
        for row, X in single.items():
            out[row] = X
        return out

    def _whole(self, path: str) -> bytearray | None:
        """Content of a file that may have a layout, else None."""
        try:
            size = Path(path).stat().st_size
            new = self._misses < TRIES and self._layouts < LAYOUTS
            if not (self._by_size.get(size) or new) or size > MAX_BYTES:
                return None
            return bytearray(Path(path).read_bytes())
        except OSError:  # `load` explains it
            return None

    def _recognise(self, path: str, raw: bytearray) -> Recogniser | None:
        similar = self._by_size.setdefault(len(raw), [])
        found = next((known for known in similar if known.alone(known.parts(raw)[0])), None)
        if found is None:
            if self._misses >= TRIES or self._layouts >= LAYOUTS:
                return None
            layout = self._learn(bytes(raw))
            if layout is None:
                self._misses += 1
                return None
            found = Recogniser(layout)
            similar.append(found)
            self._layouts += 1
            if self._by_name.get(_length(path)):  # samples differ in shape
                self._make_template(path, raw, layout)
        self._by_name.setdefault(_length(path), {})[len(raw)] = found
        return found

    def _make_template(self, path: str, raw: bytearray, layout: Layout) -> None:
        kept = self._templates.setdefault(_length(path), [])
        template = self._vary(bytes(raw), layout) if self._vary is not None and len(kept) < TEMPLATES else None
        if template is not None:
            kept.append(template)


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
