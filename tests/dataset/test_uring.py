"""Many files with one system call are read as one by one, and memory is safe from what an interrupt leaves behind."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feedrate.dataset.storage import uring
from feedrate.dataset.storage.paths import c_strings
from feedrate.dataset.storage.uring import FILES, Unavailable, Uring, address


@pytest.fixture
def ring() -> Uring:
    try:
        return Uring()
    except Unavailable:
        pytest.skip("this system has no io_uring, or does not let this process use it")


def read(ring: Uring, paths: list[Path], size: int) -> tuple[list[bool], list[bytes]]:
    """Whether each file had that size, and what was read of it, into three pieces of memory."""
    memory = np.full((len(paths), size + 9), 255, dtype=np.uint8)
    first, last = size // 3, size // 2
    pieces = np.zeros((len(paths), 3, 2), dtype=np.uint64)
    starts = np.array([0, first, last], dtype=np.uint64)
    pieces[:, :, 0] = address(memory) + np.arange(len(paths), dtype=np.uint64)[:, None] * (size + 9) + starts
    pieces[:, :, 1] = first, last - first, size - last + 1
    named = c_strings([str(path) for path in paths])
    assert named is not None
    whole = ring.read(named[1], pieces, size, (memory, named))
    assert (memory[:, size + 1 :] == 255).all()  # nothing is written beyond what was given
    return whole.tolist(), [row[:size].tobytes() for row in memory]


def write(folder: Path, count: int, size: int) -> list[Path]:
    paths = [folder / f"{number}.bin" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(np.random.default_rng(number).bytes(size))
    return paths


@pytest.mark.parametrize("count", [1, 2, FILES - 1, FILES, FILES + 1, 3 * FILES + 7])
def test_any_number_of_files_is_read_again_and_again(ring: Uring, tmp_path: Path, count: int) -> None:
    paths = write(tmp_path, count, 500)
    for _ in range(5):
        whole, found = read(ring, paths, 500)
        assert all(whole)
        assert found == [path.read_bytes() for path in paths]


def test_what_is_no_file_of_that_size_is_told_and_the_others_are_read(ring: Uring, tmp_path: Path) -> None:
    paths = write(tmp_path, 20, 500)
    paths[3].unlink()
    paths[5].write_bytes(b"x" * 499)
    paths[7].write_bytes(b"x" * 501)
    paths[9].write_bytes(b"")
    paths[11].unlink()
    paths[11].mkdir()
    for _ in range(3):  # also where another file was open in the place of a missing one before
        whole, found = read(ring, paths, 500)
        assert [number for number, good in enumerate(whole) if not good] == [3, 5, 7, 9, 11]
        assert all(f == path.read_bytes() for f, path, good in zip(found, paths, whole, strict=True) if good)
        paths.append(paths.pop(0))
        paths.insert(0, paths.pop())


def test_files_that_are_not_in_the_page_cache_are_read_too(ring: Uring, tmp_path: Path) -> None:
    paths = write(tmp_path, 30, 300_000)
    os.sync()
    for path in paths[::2]:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    whole, found = read(ring, paths, 300_000)
    assert all(whole)
    assert found == [path.read_bytes() for path in paths]


class Interrupted(Exception):
    pass


def interrupt_when_it_waits(thread: int) -> None:
    """Sends SIGUSR1 once a thread of this process has been asleep at twenty looks, in between which it could run."""
    asleep = 0
    while asleep < 20:
        time.sleep(0.01)
        state = Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(") ")[2][0]
        asleep = asleep + 1 if state == "S" else 0
    os.kill(os.getpid(), signal.SIGUSR1)


@pytest.mark.usefixtures("ring")
def test_an_interrupt_gets_through_and_its_memory_stays(tmp_path: Path) -> None:
    ring = Uring()
    paths = write(tmp_path, 3, 500)
    os.mkfifo(tmp_path / "pipe")  # opening it blocks until a writer opens it

    def interrupt(*_: Any) -> None:
        raise Interrupted

    def read_and_wait(ring: Uring) -> None:
        other.start()
        read(ring, [*paths, tmp_path / "pipe"], 500)

    before = signal.signal(signal.SIGUSR1, interrupt)
    other = threading.Thread(target=interrupt_when_it_waits, args=(threading.get_native_id(),))
    try:
        with pytest.raises(Interrupted):
            read_and_wait(ring)
    finally:
        signal.signal(signal.SIGUSR1, before)
        other.join()
    assert not ring.usable()
    lost = len(uring._LOST)
    del ring
    gc.collect()
    assert len(uring._LOST) == lost + 1
    whole, _ = read(Uring(), paths, 500)
    assert all(whole)


def test_a_forked_process_does_not_use_the_ring_of_its_parent(ring: Uring) -> None:
    assert ring.usable()
    pid = os.fork()
    if pid == 0:
        os._exit(ring.usable())
    assert os.waitpid(pid, 0)[1] == 0


def test_where_the_system_has_none_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uring, "_SINCE", (10**6, 0))
    with pytest.raises(Unavailable):
        Uring()
