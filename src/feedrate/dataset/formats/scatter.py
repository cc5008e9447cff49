"""Reads many files of one layout, each payload straight into its row of a batch."""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from feedrate.dataset.formats.file_layout import Layout, Recogniser
from feedrate.dataset.formats.memory import memory_of
from feedrate.dataset.storage.paths import Names
from feedrate.dataset.storage.uring import Unavailable, Uring, address

FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)


def differs_from_crc(layout: Layout, frame: bytes | bytearray, content: memoryview) -> bool:
    """Whether the CRC-32 in a file's frame differs from that of its payload."""
    if layout.crc is None:
        return False
    stated = int.from_bytes(frame[layout.crc : layout.crc + 4], "little")
    return stated not in (0, zlib.crc32(content))


class Scatter:
    """Reads files of one layout; each thread has its own reused memory.

    Args:
        verify: compare each payload with the CRC-32 in its file, if any.
        at_once: use io_uring where available.
    """

    def __init__(self, verify: bool, at_once: bool) -> None:
        self._verify, self._many = verify, at_once
        self._scratch = threading.local()

    def __reduce__(self) -> tuple[type[Scatter], tuple[bool, bool]]:
        return Scatter, (self._verify, self._many)

    def read(self, known: Recogniser, paths: Sequence[str], rows: np.ndarray | None, out: Tensor) -> np.ndarray:
        """Reads files into rows of `out` (None: all, in order); returns which had the layout, (n,) bool."""
        room = self._room(known, len(paths))
        if rows is None:
            rows = room.numbers[: len(paths)]
        whole = self._at_once(known, paths, rows, out, room)
        if whole is None:
            whole = self._one_after_another(known, paths, rows, out, room)
        frames = room.frames[: len(paths)]
        good: np.ndarray = known(frames) & whole
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
        self, known: Recogniser, paths: Sequence[str], rows: np.ndarray, out: Tensor, room: _Room
    ) -> np.ndarray | None:
        """Reads files with io_uring; which had the expected length, or None where io_uring is not available."""
        ring = self._ring()
        names = self._names().of(paths) if ring is not None else None
        if ring is None or names is None:
            return None
        held, places = names
        pieces = room.pieces[: len(paths)]
        np.multiply(rows, known.nbytes, out=pieces[:, 1, 0], casting="unsafe")
        pieces[:, 1, 0] += np.uint64(out.data_ptr())
        try:
            return ring.read(places, pieces, known.size, (held, out, room))
        except OSError:  # the kernel may still write to this memory, so later batches get another
            self._scratch.__dict__.clear()
            self._scratch.ring = None
            return None
        except BaseException:  # the same after a signal
            self._scratch.__dict__.clear()
            raise

    def _names(self) -> Names:
        """This thread's `Names`."""
        try:
            found: Names = self._scratch.names
        except AttributeError:
            found = self._scratch.names = Names()
        return found

    def _ring(self) -> Uring | None:
        """This thread's io_uring, or None."""
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
        known: Recogniser, paths: Sequence[str], rows: np.ndarray, out: Tensor, room: _Room
    ) -> np.ndarray:
        """Reads files with preadv; which had the expected length."""
        n, content, whole = known.nbytes, memory_of(out), np.zeros(len(paths), dtype=bool)
        for at, (path, row) in enumerate(zip(paths, (rows * n).tolist(), strict=True)):
            try:
                file = os.open(path, FLAGS)
                try:
                    # the spare byte of a tail is read only if the file is too long
                    count = os.preadv(file, (room.heads[at], content[row : row + n], room.tails[at]), 0)
                    whole[at] = count == known.size
                finally:
                    os.close(file)
            except OSError:  # `load` explains it
                continue
        return whole

    def _room(self, known: Recogniser, count: int) -> _Room:
        """Reused memory of this thread for at least `count` files."""
        kept: dict[Recogniser, _Room] = self._scratch.__dict__.setdefault("rooms", {})
        found = kept.get(known)
        if found is None or len(found.frames) < count:
            if len(kept) > 64:
                kept.clear()
            found = kept[known] = _Room(known, count)
        return found


class _Room:
    """Memory for the heads and tails of files of one layout.

    Attributes:
        frames: (count, width) uint8, a head, a tail and a spare byte in each.
        heads, tails: the parts of each.
        numbers: (count,) int64, of its rows.
        pieces: (count, 3, 2) uint64, address and length of head, payload and tail; payload addresses are set later.
    """

    def __init__(self, known: Recogniser, count: int) -> None:
        first, last = len(known.layout.head), len(known.layout.head) + len(known.layout.tail) + 1
        self.frames = np.zeros((count, known.width), dtype=np.uint8)
        views = [memoryview(frame.data) for frame in self.frames]
        self.heads, self.tails = [v[:first] for v in views], [v[first:last] for v in views]
        self.numbers = np.arange(count)
        self.pieces = np.zeros((count, 3, 2), dtype=np.uint64)
        self.pieces[:, 0, 0] = address(self.frames) + np.arange(count, dtype=np.uint64) * self.frames.shape[1]
        self.pieces[:, 2, 0] = self.pieces[:, 0, 0] + np.uint64(first)
        self.pieces[:, :, 1] = first, known.nbytes, last - first
