"""Reads samples from files of one tensor each at the speed of the disk: payloads land straight where they are wanted.

A file that is not built like one seen before is loaded by torch.load or np.load; layouts are file_layout.py's affair.
"""

from __future__ import annotations

import os
import threading
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from feedrate.dataset.file_layout import MAX_BYTES, Layout, Recogniser
from feedrate.errors import SampleError

Empty = Callable[[tuple[int, ...], torch.dtype], Tensor]
LAYOUTS = 4096  # kept at most, a few kilobytes each: as many shapes of a data set of various lengths
TRIES = 64  # files without a layout that can be used, before no further one is looked at
_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)


class SampleReader:
    """Reads files that hold one tensor each.

    Args:
        load: `(path, ID) -> Tensor`, for files whose layout is unknown; raises SampleError.
        learn: the layout of a file from its bytes, None where it has none that can be used.
        verify: compare each payload with the CRC-32 that its file carries, where it carries one.

    Safe to use from several threads; a copy in another process learns anew.
    """

    def __init__(
        self, load: Callable[[str, str], Tensor], learn: Callable[[bytes], Layout | None], verify: bool = False
    ) -> None:
        self._load, self._learn, self._verify = load, learn, verify
        self._forget()

    def _forget(self) -> None:
        # by length of the file's name, since an archive's own name is the file's as a rule, and moves all that follows
        self._by_name: dict[int, dict[int, _Known]] = {}
        self._by_size: dict[int, list[_Known]] = {}
        self._layouts = self._misses = 0
        self._scratch = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {"_load": self._load, "_learn": self._learn, "_verify": self._verify}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def read(self, path: str, ID: str) -> Tensor:
        """One sample, in memory of its own.

        Raises:
            SampleError: the file is missing, damaged, or holds no single tensor.
        """
        if self._expected(path) is None:  # of unknown layout, which may be one that keeps strides
            return self._one(path, ID)
        return self.read_batch([path], [ID], fresh)[0]

    def read_batch(self, paths: Sequence[str], IDs: Sequence[str], empty: Empty) -> Tensor | list[Tensor]:
        """Many samples, (n, ...) in memory that `empty(shape, dtype)` gives; a list where they are not alike.

        Raises:
            SampleError: as `read`, for the first of them that cannot be read.
        """
        known = [self._expected(path) for path in paths]
        form = next((k.layout for k in known if k is not None), None)
        if form is None:
            return self._stacked({row: self._one(paths[row], IDs[row]) for row in range(len(paths))}, None, empty)
        out = empty((len(paths), *form.shape), form.dtype)
        rows = memoryview(out.view(-1).view(torch.uint8).numpy().data)
        rest = set(range(len(paths)))
        for same in {id(k): k for k in known if k is not None and k.layout.same_form(form)}.values():
            picked = [row for row, k in enumerate(known) if k is same]
            good = self._scatter(same, paths, picked, rows)
            rest -= set(picked) if good.all() else {row for row, found in zip(picked, good, strict=True) if found}
        if not rest:
            return out
        single = {row: self._one(paths[row], IDs[row]) for row in sorted(rest)}
        return self._stacked(single, None if len(single) == len(paths) else out, empty)

    # -----------------------------------------------------------------------------------------------------
    # files of a known layout
    # -----------------------------------------------------------------------------------------------------

    def _expected(self, path: str) -> _Known | None:
        """The layout that a file most likely has."""
        sizes = self._by_name.get(len(path))
        if sizes is None:
            return None
        if len(sizes) == 1:
            return next(iter(sizes.values()))
        try:
            return sizes.get(Path(path).stat().st_size)
        except OSError:
            return None

    def _scatter(self, known: _Known, paths: Sequence[str], picked: Sequence[int], rows: memoryview) -> np.ndarray:
        """Reads files into their rows; for each of `picked` whether its file was of this layout: (n,) bool."""
        n, total = known.layout.nbytes, known.size
        frames, heads, tails = self._frames(known, len(picked))
        complete = np.ones(len(picked), dtype=bool)
        for at, row in enumerate(picked):
            try:
                file = os.open(paths[row], _FLAGS)
                try:
                    # the spare byte of a tail stays unread unless the file is longer than it should be
                    got = os.preadv(file, (heads[at], rows[row * n : row * n + n], tails[at]), 0)
                finally:
                    os.close(file)
            except OSError:  # what is wrong is said by `load`
                got = -1
            if got != total:
                complete[at] = False
        frames = frames[: len(picked), :-1]
        good: np.ndarray = known.recognised(frames) & complete
        crc = known.layout.crc
        if self._verify and crc is not None:
            stated = frames[:, crc : crc + 4].copy().view("<u4")[:, 0]
            good &= [
                c in (0, zlib.crc32(rows[row * n : row * n + n]))
                for row, c in zip(picked, stated.tolist(), strict=True)
            ]
        return good

    def _frames(self, known: _Known, count: int) -> tuple[np.ndarray, list[memoryview], list[memoryview]]:
        """Memory of this thread for heads and tails, (count, size + 1) uint8 and its parts; used again and again."""
        kept: dict[Any, Any] = self._scratch.__dict__
        found = kept.get(id(known))
        if found is None or len(found[0]) < count:
            if len(kept) > 64:
                kept.clear()
            first = len(known.layout.head)
            frames = np.empty((count, first + len(known.layout.tail) + 1), dtype=np.uint8)
            views = [memoryview(frame.data) for frame in frames]
            found = kept[id(known)] = frames, [v[:first] for v in views], [v[first:] for v in views]
        frames, heads, tails = found
        return frames, heads, tails

    # -----------------------------------------------------------------------------------------------------
    # all others
    # -----------------------------------------------------------------------------------------------------

    def _one(self, path: str, ID: str) -> Tensor:
        """A file that is not of the layout expected: of another one that is known or can be learned, or of none."""
        raw = self._whole(path)
        known = self._recognise(path, raw) if raw is not None else None
        if raw is not None and known is not None and not (self._verify and known.differs_from_crc(raw)):
            return known.tensor(raw)
        X = self._load(path, ID)
        if self._verify:
            check_crc(path, ID)
        return X

    @staticmethod
    def _stacked(single: dict[int, Tensor], out: Tensor | None, empty: Empty) -> Tensor | list[Tensor]:
        """The batch of the samples by row in `single`, and of those in the other rows of `out`."""
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
        """Content of a file that may have a layout."""
        try:
            size = Path(path).stat().st_size
            new = self._misses < TRIES and self._layouts < LAYOUTS
            if not (self._by_size.get(size) or new) or size > MAX_BYTES:
                return None
            return bytearray(Path(path).read_bytes())
        except OSError:  # what is wrong is said by `load`
            return None

    def _recognise(self, path: str, raw: bytearray) -> _Known | None:
        alike = self._by_size.setdefault(len(raw), [])
        found = next((k for k in alike if k.matches(np.frombuffer(raw, dtype=np.uint8))), None)
        if found is None:
            if self._misses >= TRIES or self._layouts >= LAYOUTS:
                return None
            layout = self._learn(bytes(raw))
            if layout is None:
                self._misses += 1
                return None
            found = _Known(layout)
            alike.append(found)
            self._layouts += 1
        self._by_name.setdefault(len(path), {})[len(raw)] = found
        return found


class _Known:
    """A layout, with what is computed once for it."""

    def __init__(self, layout: Layout) -> None:
        self.layout, self.recognised = layout, Recogniser(layout)
        self.size = len(layout.head) + layout.nbytes + len(layout.tail)

    def matches(self, raw: np.ndarray) -> bool:
        """Whether a whole file, (size,) uint8, is built like this."""
        first = len(self.layout.head)
        frame = np.concatenate([raw[:first], raw[first + self.layout.nbytes :]])
        return bool(self.recognised(frame[None])[0])

    def tensor(self, raw: bytearray) -> Tensor:
        """The tensor in a whole file of this layout."""
        first = len(self.layout.head)
        flat = torch.frombuffer(raw, dtype=torch.uint8, offset=first, count=self.layout.nbytes)
        return flat.clone().view(self.layout.dtype).view(self.layout.shape)  # a copy is aligned, and no larger

    def differs_from_crc(self, raw: bytearray) -> bool:
        """Whether a whole file of this layout states another CRC-32 than its payload has."""
        if self.layout.crc is None:
            return False
        first, n = len(self.layout.head), self.layout.nbytes
        place = self.layout.crc + (n if self.layout.crc >= first else 0)
        stated = int.from_bytes(raw[place : place + 4], "little")
        return stated not in (0, zlib.crc32(raw[first : first + n]))


def check_crc(path: str, ID: str) -> None:
    """Compares the content of a file of torch.save's with the CRC-32s in it; torch.load never does.

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
    except Exception:  # zipfile raises a dozen types for bytes that are not as they should be
        text = "its bytes do not match the CRC-32 in it (dataset.verify=crc)"
        raise SampleError(
            f"sample {ID!r} ({path}): {text}; restore it, or take the ID out of the partition", ID=ID, path=path
        ) from None


def fresh(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An `empty` that takes new memory each time."""
    return torch.empty(shape, dtype=dtype)
