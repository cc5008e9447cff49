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
from feedrate.dataset.paths import Paths, c_strings
from feedrate.dataset.shard import memory_of
from feedrate.dataset.uring import Unavailable, Uring, address
from feedrate.errors import SampleError
from feedrate.timing.stages import stage

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
        at_once: read many files with one system call where the system has that.

    Safe to use from several threads; a copy in another process learns anew.
    """

    def __init__(
        self,
        load: Callable[[str, str], Tensor],
        learn: Callable[[bytes], Layout | None],
        verify: bool = False,
        at_once: bool = True,
    ) -> None:
        self._load, self._learn, self._verify, self._many = load, learn, verify, at_once
        self._forget()

    def _forget(self) -> None:
        # by length of the file's name, since an archive's own name is the file's as a rule, and moves all that follows
        self._by_name: dict[int, dict[int, _Known]] = {}
        self._by_size: dict[int, list[_Known]] = {}
        self._layouts = self._misses = 0
        self._scratch = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("_load", "_learn", "_verify", "_many")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def read(self, path: str, ID: str) -> Tensor:
        """One sample, in memory of its own.

        Raises:
            SampleError: the file is missing, damaged, or holds no single tensor.
        """
        if self._expected(path, _length(path)) is None:  # of unknown layout, which may be one that keeps strides
            return self._one(path, ID)
        return self.read_batch([path], [ID], fresh)[0]

    def read_batch(self, paths: Sequence[str], IDs: Sequence[str], empty: Empty) -> Tensor | list[Tensor]:
        """Many samples, (n, ...) in memory that `empty(shape, dtype)` gives; a list where they are not alike.

        Raises:
            SampleError: as `read`, for the first of them that cannot be read.
        """
        groups = self._groups(paths)
        if not groups:
            return self._stacked({row: self._one(paths[row], IDs[row]) for row in range(len(paths))}, None, empty)
        form = next(iter(groups)).layout
        out = empty((len(paths), *form.shape), form.dtype)
        good = np.zeros(len(paths), dtype=bool)
        for known, rows in groups.items():
            if known.layout.same_form(form):
                some = paths if len(rows) == len(paths) else [paths[row] for row in rows.tolist()]
                good[rows] = self._scatter(known, some, rows, out)
        if good.all():
            return out
        single = {row: self._one(paths[row], IDs[row]) for row in np.flatnonzero(~good).tolist()}
        return self._stacked(single, None if len(single) == len(paths) else out, empty)

    # -----------------------------------------------------------------------------------------------------
    # files of a known layout
    # -----------------------------------------------------------------------------------------------------

    def _groups(self, paths: Sequence[str]) -> dict[_Known, np.ndarray]:
        """The rows of the files that most likely have a layout, for each that comes into question."""
        if isinstance(paths, Paths) and paths.length is not None:
            lengths = [paths.length] * len(paths)
        else:
            lengths = list(map(_length, paths))
        if lengths and lengths.count(lengths[0]) == len(lengths):
            sizes = self._by_name.get(lengths[0], {})
            if len(sizes) < 2:
                return {known: np.arange(len(paths)) for known in sizes.values()}
        groups: dict[_Known, list[int]] = {}
        for row, (path, length) in enumerate(zip(paths, lengths, strict=True)):
            if (known := self._expected(path, length)) is not None:
                groups.setdefault(known, []).append(row)
        return {known: np.array(rows) for known, rows in groups.items()}

    def _expected(self, path: str, length: int) -> _Known | None:
        """The layout that a file most likely has."""
        sizes = self._by_name.get(length)
        if sizes is None:
            return None
        if len(sizes) == 1:
            return next(iter(sizes.values()))
        try:
            return sizes.get(Path(path).stat().st_size)
        except OSError:
            return None

    def _scatter(self, known: _Known, paths: Sequence[str], rows: np.ndarray, out: Tensor) -> np.ndarray:
        """Reads files into rows of `out`; for each whether it was of this layout: (n,) bool."""
        room = self._room(known, len(paths))
        whole = self._at_once(known, paths, rows, out, room)
        if whole is None:
            whole = self._one_after_another(known, paths, rows, out, room)
        frames = room.frames[: len(paths)]
        good: np.ndarray = known.recognised(frames) & whole
        crc, n = known.layout.crc, known.nbytes
        if self._verify and crc is not None:
            stated = frames[:, crc : crc + 4].copy().view("<u4")[:, 0]
            content = memory_of(out)
            good &= [
                c in (0, zlib.crc32(content[row * n : row * n + n]))
                for row, c in zip(rows.tolist(), stated.tolist(), strict=True)
            ]
        return good

    def _at_once(
        self, known: _Known, paths: Sequence[str], rows: np.ndarray, out: Tensor, room: _Room
    ) -> np.ndarray | None:
        """Reads files with a system call for many; whether each was as long as expected, None where that cannot be."""
        ring, names = self._ring(), c_strings(paths)
        if ring is None or names is None:
            return None
        held, places = names
        pieces = room.pieces[: len(paths)]
        pieces[:, 1, 0] = rows.astype(np.uint64) * known.nbytes + out.data_ptr()
        try:
            return ring.read(places, pieces, known.size, (held, out, room))
        except OSError:
            self._scratch.ring = None
            return None
        except BaseException:  # a signal's: the system may still write to that memory
            self._scratch.__dict__.clear()
            raise

    def _ring(self) -> Uring | None:
        """This thread's, None where there is none."""
        if not self._many:
            return None
        try:
            ring: Uring | None = self._scratch.ring
            if ring is None or ring.usable():
                return ring
        except AttributeError:
            pass
        try:
            self._scratch.ring = ring = Uring()
        except Unavailable:
            self._scratch.ring = ring = None
        return ring

    @staticmethod
    def _one_after_another(
        known: _Known, paths: Sequence[str], rows: np.ndarray, out: Tensor, room: _Room
    ) -> np.ndarray:
        """Reads files; whether each was as long as expected."""
        n, content, whole = known.nbytes, memory_of(out), np.zeros(len(paths), dtype=bool)
        for at, (path, row) in enumerate(zip(paths, (rows * n).tolist(), strict=True)):
            try:
                file = os.open(path, _FLAGS)
                try:
                    # the spare byte of a tail stays unread unless the file is longer than it should be
                    got = os.preadv(file, (room.heads[at], content[row : row + n], room.tails[at]), 0)
                    whole[at] = got == known.size
                finally:
                    os.close(file)
            except OSError:  # what is wrong is said by `load`
                continue
        return whole

    def _room(self, known: _Known, count: int) -> _Room:
        """Memory of this thread for so many files at least; used again and again."""
        kept: dict[_Known, _Room] = self._scratch.__dict__.setdefault("rooms", {})
        found = kept.get(known)
        if found is None or len(found.frames) < count:
            if len(kept) > 64:
                kept.clear()
            found = kept[known] = _Room(known, count)
        return found

    # -----------------------------------------------------------------------------------------------------
    # all others
    # -----------------------------------------------------------------------------------------------------

    def _one(self, path: str, ID: str) -> Tensor:
        """A file that is not of the layout expected: of another one that is known or can be learned, or of none."""
        raw = self._whole(path)
        with stage("decode"):
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
        self._by_name.setdefault(_length(path), {})[len(raw)] = found
        return found


class _Known:
    """A layout, with what is computed once for it."""

    def __init__(self, layout: Layout) -> None:
        self.layout, self.recognised = layout, Recogniser(layout)
        self.nbytes = layout.nbytes
        self.size = len(layout.head) + self.nbytes + len(layout.tail)

    def matches(self, raw: np.ndarray) -> bool:
        """Whether a whole file, (size,) uint8, is built like this."""
        first = len(self.layout.head)
        frame = np.concatenate([raw[:first], raw[first + self.nbytes :]])
        return self.recognised.alone(frame)

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


class _Room:
    """Memory for the heads and tails of files of one layout.

    Attributes:
        frames: (count, width) uint8, a head, a tail and a spare byte in each.
        heads, tails: the parts of each.
        pieces: (count, 3, 2) uint64, address and length of head, payload and tail; where payloads go is put in later.
    """

    def __init__(self, known: _Known, count: int) -> None:
        first, last = len(known.layout.head), len(known.layout.head) + len(known.layout.tail) + 1
        self.frames = np.zeros((count, known.recognised.width), dtype=np.uint8)
        views = [memoryview(frame.data) for frame in self.frames]
        self.heads, self.tails = [v[:first] for v in views], [v[first:last] for v in views]
        self.pieces = np.zeros((count, 3, 2), dtype=np.uint64)
        self.pieces[:, 0, 0] = address(self.frames) + np.arange(count, dtype=np.uint64) * self.frames.shape[1]
        self.pieces[:, 2, 0] = self.pieces[:, 0, 0] + np.uint64(first)
        self.pieces[:, :, 1] = first, known.nbytes, last - first


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


def _length(path: str) -> int:
    return len(os.fsencode(path))


def fresh(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An `empty` that takes new memory each time."""
    return torch.empty(shape, dtype=dtype)
