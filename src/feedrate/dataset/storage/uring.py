"""Opens, reads and closes many files with one system call: Linux's io_uring."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
import sys
from typing import Any

import numpy as np

FILES = 64  # open at once
_SINCE = (5, 15)  # opens files without descriptors, which a process forked meanwhile would inherit
# Source of numbers and structures: the kernel's include/uapi/linux/io_uring.h, and io_uring_setup(2), io_uring_enter(2)
# and io_uring_register(2). The numbers of these system calls are the same on every architecture but Alpha.
_SETUP, _ENTER, _REGISTER = 425, 426, 427
_GETEVENTS, _REGISTER_FILES, _SINGLE_MMAP, _FIXED_FILE = 1, 2, 1, 1
_READV, _OPENAT, _CLOSE = 1, 18, 19
_AT_FDCWD, _RWF_NOWAIT = -100, 8
_SUBMISSIONS = 0x10000000  # offset at which they are mapped
# places in struct io_uring_params, 30 numbers of 32 bits
_SQ_ENTRIES, _CQ_ENTRIES, _FEATURES = 0, 1, 5
_SQ_HEAD, _SQ_TAIL, _SQ_ARRAY, _CQ_HEAD, _CQ_TAIL, _CQ_CQES = 10, 11, 16, 20, 21, 25
# slots of each kind of operation, one for each file; READ fails where it would block, WAIT blocks
_OPEN, _READ, _SHUT, _WAIT = (slice(first, first + FILES) for first in range(0, 4 * FILES, FILES))
_EVERY = np.arange(FILES, dtype=np.uint32)
_AT_ONCE = np.concatenate([_EVERY, _EVERY + _READ.start, _EVERY + _SHUT.start])
_32_BITS = 0xFFFFFFFF
_LOST: list[Any] = []  # rings whose memory the kernel may still write to, as a wait was interrupted


class Unavailable(Exception):
    """This system has no io_uring, or forbids it."""


class Uring:
    """An io_uring for one thread of one process.

    The operations are prepared once; only file names and addresses change between batches. Where a wait is interrupted,
    its memory is kept until the process ends. Raises Unavailable.
    """

    def __init__(self) -> None:
        self._file, self._pid = -1, os.getpid()
        self._held: Any = None
        release = re.match(r"(\d+)\.(\d+)", os.uname().release)
        if sys.platform != "linux" or release is None or (int(release[1]), int(release[2])) < _SINCE:
            raise Unavailable
        call = ctypes.CDLL(None, use_errno=True)["syscall"]
        call.restype = ctypes.c_long
        call.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_long, ctypes.c_long, ctypes.c_long]
        call.argtypes += [ctypes.c_void_p, ctypes.c_long]
        self._call = call
        params, none = np.zeros(30, dtype=np.uint32), np.full(FILES, -1, dtype=np.int32)
        self._file = call(_SETUP, 4 * FILES, address(params), 0, 0, None, 0)
        if self._file < 0 or not params[_FEATURES] & _SINGLE_MMAP:
            raise Unavailable
        if call(_REGISTER, self._file, _REGISTER_FILES, address(none), FILES, None, 0) < 0:
            raise Unavailable
        try:
            self._map(params.tolist())
        except OSError:
            raise Unavailable from None
        self._prepare()

    def _map(self, at: list[int]) -> None:
        size = max(at[_SQ_ARRAY] + 4 * at[_SQ_ENTRIES], at[_CQ_CQES] + 16 * at[_CQ_ENTRIES])
        numbers = np.frombuffer(mmap.mmap(self._file, size), dtype=np.uint32)
        # counters that only grow, modulo 2**32: `tail` and `seen` are set here, `taken` and `done` by the system
        self._taken, self._tail = numbers[at[_SQ_HEAD] // 4 :][:1], numbers[at[_SQ_TAIL] // 4 :][:1]
        self._seen, self._done = numbers[at[_CQ_HEAD] // 4 :][:1], numbers[at[_CQ_TAIL] // 4 :][:1]
        self._queue = numbers[at[_SQ_ARRAY] // 4 :][: at[_SQ_ENTRIES]]
        completions = numbers[at[_CQ_CQES] // 4 :][: 4 * at[_CQ_ENTRIES]]
        self._completions = completions.view(np.int32).reshape(-1, 4)
        submissions = mmap.mmap(self._file, 64 * at[_SQ_ENTRIES], offset=_SUBMISSIONS)
        self._words = np.frombuffer(submissions, dtype=np.uint64).reshape(-1, 8)

    def _prepare(self) -> None:
        self._pieces = np.zeros((FILES, 3, 2), dtype=np.uint64)
        self._results = np.zeros(len(self._words), dtype=np.int32)
        self._words[:] = 0
        self._words[:, 4] = np.arange(len(self._words))  # by which a completion names its operation
        self._names = self._words[_OPEN, 2]
        numbers, codes = self._words.view(np.int32), self._words.view(np.uint8)
        codes[_OPEN, 0], codes[_SHUT, 0] = _OPENAT, _CLOSE
        numbers[_OPEN, 1], numbers[_OPEN, 7] = _AT_FDCWD, os.O_RDONLY
        numbers[_OPEN, 11] = numbers[_SHUT, 11] = _EVERY + 1
        for reads, flags in ((_READ, _RWF_NOWAIT), (_WAIT, 0)):
            codes[reads, 0], codes[reads, 1], numbers[reads, 1] = _READV, _FIXED_FILE, _EVERY
            self._words[reads, 2] = address(self._pieces) + 48 * _EVERY.astype(np.uint64)
            numbers[reads, 6], numbers[reads, 7] = 3, flags

    def usable(self) -> bool:
        """Whether it belongs to this process, and was never interrupted."""
        return self._pid == os.getpid() and self._held is None

    def read(self, names: np.ndarray, pieces: np.ndarray, size: int, held: Any) -> np.ndarray:
        """Reads whole files; returns which have exactly `size` bytes, (n,) bool.

        Args:
            names: (n,) uint64, addresses of paths that end in a zero byte.
            pieces: (n, 3, 2) uint64, address and length of the three buffers that each is read into.
            held: the objects that own this memory and the names.

        Raises:
            OSError: a system call failed.
        """
        assert self.usable()
        self._held = held
        whole = np.empty(len(names), dtype=bool)
        for first in range(0, len(names), FILES):
            part = slice(first, first + FILES)
            whole[part] = self._some(names[part], pieces[part], size)
        self._held = None
        return whole

    def _some(self, names: np.ndarray, pieces: np.ndarray, size: int) -> np.ndarray:
        count, results = len(names), self._results
        self._names[:count] = names
        self._pieces[:count] = pieces
        # Operations start in order, so files in the page cache are opened, copied and closed in one call.
        self._do(_AT_ONCE if count == FILES else _AT_ONCE.reshape(3, FILES)[:, :count].reshape(-1))
        whole: np.ndarray = (results[_READ][:count] == size) & (results[_OPEN][:count] == 0)
        if not whole.all():  # wait for the others together
            rest = _EVERY[:count][~whole]
            self._do(rest)
            self._do(rest + _WAIT.start)
            whole[rest] = (results[_WAIT][rest] == size) & (results[_OPEN][rest] == 0)
            self._do(rest + _SHUT.start)
        return whole

    def _do(self, operations: np.ndarray) -> None:
        """Submits operations and waits for them."""
        tail = int(self._tail[0])
        at = tail % len(self._queue)
        if at + len(operations) <= len(self._queue):
            self._queue[at : at + len(operations)] = operations
        else:
            self._queue[np.arange(at, at + len(operations)) % len(self._queue)] = operations
        self._tail[0] = (tail + len(operations)) & _32_BITS
        self._wait()

    def _wait(self) -> None:
        while left := (int(self._tail[0]) - int(self._seen[0])) & _32_BITS:
            new = (int(self._tail[0]) - int(self._taken[0])) & _32_BITS
            if self._call(_ENTER, self._file, new, left, _GETEVENTS, None, 0) < 0:
                code = ctypes.get_errno()
                if code not in (errno.EINTR, errno.EAGAIN, errno.EBUSY):
                    raise OSError(code, os.strerror(code))
            seen = int(self._seen[0])
            done = (int(self._done[0]) - seen) & _32_BITS
            at = seen % len(self._completions)
            found = self._completions[at : at + done]  # up to the end of the memory; the rest in the next round
            self._results[found[:, 0]] = found[:, 2]
            self._seen[0] = (seen + len(found)) & _32_BITS

    def __del__(self) -> None:
        if self._held is not None and self._pid == os.getpid():
            _LOST.append(self)
        elif self._file >= 0:
            os.close(self._file)


def address(array: np.ndarray) -> int:
    """Address of an array's memory."""
    found: int = array.__array_interface__["data"][0]
    return found
