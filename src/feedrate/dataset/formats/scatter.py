"""Reads many files of one layout, each payload straight into its row of a batch."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from torch import Tensor

from feedrate.dataset.formats.file_layout import Recogniser
from feedrate.dataset.formats.memory import memory_of
from feedrate.dataset.storage.paths import Names
from feedrate.dataset.storage.uring import Unavailable, Uring, address

FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)


class Scatter:
    """Reads files of one layout; each thread has its own reused memory.

    Args:
        verify: compare each payload with the CRC-32 in its file, if any.
        at_once: use io_uring where available.
    """

    def __init__(self, verify: bool, at_once: bool) -> None:
        self._verify, self.at_once = verify, at_once
        self._kept = threading.local()  # its `ring`, and its `rooms` by Recogniser

    def read(self, known: Recogniser, paths: Sequence[str], rows: np.ndarray | None, out: Tensor) -> np.ndarray:
        """Reads files into rows of `out` (None: all, in order); returns which had the layout, (n,) bool."""
        ring = self._ring()
        room = self._room(known, len(paths))
        if rows is None:
            rows = room.numbers[: len(paths)]
        names = None if ring is None else room.names.of(paths)
        whole = None
        if ring is not None and names is not None:
            pieces = room.pieces[: len(paths)]
            np.multiply(rows, known.nbytes, out=pieces[:, 1, 0], casting="unsafe")
            pieces[:, 1, 0] += np.uint64(out.data_ptr())
            try:
                whole = ring.read(names[1], pieces, known.size, (names[0], out, room))
            except OSError:  # the kernel may still write to this memory
                self._kept.ring, self._kept.rooms = None, {}
                room = self._room(known, len(paths))
        if whole is None:
            whole = _one_after_another(known, paths, rows, out, room)
        frames = room.frames[: len(paths)]
        good: np.ndarray = known(frames) & whole
        if self._verify and known.crc is not None:
            content = memory_of(out)
            payloads = (content[begin : begin + known.nbytes] for begin in (rows * known.nbytes).tolist())
            good &= list(map(known.matches_crc, (frame.data for frame in frames), payloads))
        return good

    def _ring(self) -> Uring | None:
        """This thread's io_uring, if it may have one; a new one after a fork or an interrupt, and new rooms."""
        kept = self._kept
        if not hasattr(kept, "ring") or (kept.ring is not None and not kept.ring.usable()):
            kept.rooms, kept.ring = {}, None
            with suppress(Unavailable):
                kept.ring = Uring() if self.at_once else None
        found: Uring | None = kept.ring
        return found

    def _room(self, known: Recogniser, count: int) -> _Room:
        """Reused memory of this thread for at least `count` files."""
        rooms: dict[Recogniser, _Room] = self._kept.rooms
        found = rooms.get(known)
        if found is None or len(found.frames) < count:
            if len(rooms) > 64:
                rooms.clear()
            found = rooms[known] = _Room(known, count)
        return found


class _Room:
    """Memory for names and frames of files of one layout.

    Attributes:
        frames: (count, width) uint8, a head, a tail and a spare byte in each.
        heads, tails: the parts of each.
        numbers: (count,) int64, of its rows.
        pieces: (count, 3, 2) uint64, address and length of head, payload and tail; payload addresses are set later.
    """

    def __init__(self, known: Recogniser, count: int) -> None:
        first, end = known.first, len(known.frame) + 1
        self.frames = np.zeros((count, known.width), dtype=np.uint8)
        self.heads = [frame[:first].data for frame in self.frames]
        self.tails = [frame[first:end].data for frame in self.frames]
        self.names = Names()
        self.numbers = np.arange(count)
        self.pieces = np.zeros((count, 3, 2), dtype=np.uint64)
        self.pieces[:, 0, 0] = address(self.frames) + np.arange(count, dtype=np.uint64) * known.width
        self.pieces[:, 2, 0] = self.pieces[:, 0, 0] + np.uint64(first)
        self.pieces[:, :, 1] = first, known.nbytes, end - first


def _one_after_another(
    known: Recogniser, paths: Sequence[str], rows: np.ndarray, out: Tensor, room: _Room
) -> np.ndarray:
    """Reads files with preadv; which had the expected length."""
    n, content, whole = known.nbytes, memory_of(out), np.zeros(len(paths), dtype=bool)
    for at, (path, row) in enumerate(zip(paths, (rows * n).tolist(), strict=True)):
        try:
            file = os.open(path, FLAGS)
            try:
                # the spare byte at the end is read only if the file is too long
                parts = room.heads[at], content[row : row + n], room.tails[at]
                whole[at] = os.preadv(file, parts, 0) == known.size
            finally:
                os.close(file)
        except OSError:  # `load` explains it
            continue
    return whole
