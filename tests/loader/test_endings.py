"""However a program ends, its loader leaves nothing behind; and however long it loads, its memory stays the same."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch.utils.data import Dataset

from aftermath import MARK, is_orphan, processes_of, shared_memory
from feedrate.loader import Loader
from loader import ending
from loader.test_slots import Numbered

ENGINES = ("inline", "thread", "process")
CODES = {"end": 0, "exception": 1, "exit": 3, "Ctrl-C": -signal.SIGINT, "SIGKILL": -signal.SIGKILL}


def wait_for(there: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def run(engine: str, way: str, work: Path) -> tuple[subprocess.Popen[bytes], Path]:
    note = work / "note"
    paths = os.pathsep.join([*map(str, (Path(ending.__file__).parents[1], Path(ending.__file__).parents[2] / "src"))])
    process = subprocess.Popen(
        [sys.executable, "-m", "loader.ending", engine, way, str(note)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", MARK: str(work)},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    return process, note


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_is_left_however_the_program_ends(engine: str, tmp_path: Path) -> None:
    shared = shared_memory()
    started = {}
    for way in CODES:
        (tmp_path / way).mkdir()
        started[way] = run(engine, way, tmp_path / way)
    for way, (process, note) in started.items():
        if way in ("Ctrl-C", "SIGKILL"):
            wait_for(lambda process=process, note=note: note.exists() or process.poll() is not None)
        if way == "Ctrl-C":
            os.killpg(process.pid, signal.SIGINT)
        if way == "SIGKILL":
            process.kill()
        _, said = process.communicate(timeout=60)
        assert process.returncode == CODES[way], (way, said.decode())
        last = {"exception": "ValueError: no more", "Ctrl-C": "KeyboardInterrupt"}.get(way, "")
        assert said.decode().strip().endswith(last), (way, said.decode())
        assert said.count(b"Traceback") <= 1
    for way in CODES:
        wait_for(lambda way=way: not list(processes_of(str(tmp_path / way))))
    wait_for(lambda: not any(is_orphan(name) for name in shared_memory() - shared))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["thread", "process"])
def test_a_sample_that_hangs_keeps_no_program_from_ending(engine: str, tmp_path: Path) -> None:
    process, _ = run(engine, "a sample that hangs", tmp_path)
    _, said = process.communicate(timeout=100)  # instead of the thousand seconds of the sample
    assert process.returncode == 1
    assert said.decode().strip().endswith("ValueError: no more")
    wait_for(lambda: not list(processes_of(str(tmp_path))))


@pytest.mark.usefixtures("no_workers_left", "no_threads_left")
@pytest.mark.parametrize("engine", ENGINES)
def test_no_descriptor_is_left_by_a_loader_that_was_closed(engine: str) -> None:
    def once() -> int:
        workers = 0 if engine == "inline" else 2
        loader = Loader(Numbered(), 4, seed=0, engine=engine, num_workers=workers, persistent_workers=workers > 0)
        list(loader)
        next(iter(loader))
        loader.close()
        del loader
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    first = once()  # what torch opens once
    assert max(once() for _ in range(3)) <= first


# ---------------------------------------------------------------------------------------------------------
# memory that is used again
# ---------------------------------------------------------------------------------------------------------


class LateCopy:
    """Stands in for a device whose copies are carried out late: some batches after they were ordered.

    As ToDevice does, it keeps the source of a copy until that is complete.
    """

    def __init__(self, delay: int) -> None:
        self._delay = delay
        self._ordered: deque[tuple[torch.Tensor, torch.Tensor]] = deque()

    def copy(self, source: torch.Tensor) -> torch.Tensor:
        target = torch.full_like(source, -1)
        self._ordered.append((source, target))
        if len(self._ordered) > self._delay:
            self._carry_out()
        return target

    def synchronize(self) -> None:
        while self._ordered:
            self._carry_out()

    def _carry_out(self) -> None:
        source, target = self._ordered.popleft()
        target.copy_(source)


@pytest.mark.usefixtures("no_workers_left", "no_threads_left")
@pytest.mark.parametrize("delay", [1, 3, 20])
@pytest.mark.parametrize("engine", ENGINES)
def test_memory_is_not_filled_again_before_a_late_copy_from_it_is_complete(engine: str, delay: int) -> None:
    workers = 0 if engine == "inline" else 2
    loader = Loader(Numbered(), 4, seed=0, engine=engine, num_workers=workers, persistent_workers=workers > 0)
    device, places = LateCopy(delay), set()
    for _ in range(2):
        copies = []
        for X, y in loader:
            places.add(X.data_ptr())
            copies.append((device.copy(X), y))
        device.synchronize()
        for X, y in copies:
            assert torch.equal(X, y[:, None, None, None].expand_as(X).int())
    if delay == 1:
        assert len(places) < 48  # batches; it is used again when it is complete
    loader.close()


class Pictures(Dataset[Any]):
    """150 KB each."""

    def __len__(self) -> int:
        return 64 * 6

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((3, 224, 224), index % 256, dtype=torch.uint8), index


def tree_bytes() -> int:
    """Proportional set size of this process and those that it started: shared pages count once."""
    own = psutil.Process()
    return sum(process.memory_full_info().pss for process in [own, *own.children(recursive=True)])


@pytest.mark.slow
@pytest.mark.usefixtures("no_workers_left", "no_threads_left")
@pytest.mark.parametrize("engine", ENGINES)
def test_memory_stays_the_same_over_twenty_epochs(engine: str) -> None:
    workers = 0 if engine == "inline" else 2
    loader = Loader(Pictures(), 64, True, seed=0, engine=engine, num_workers=workers, persistent_workers=workers > 0)
    used = []
    for _ in range(2):  # a user who holds some batches at times makes the ring as large as it may become for one
        deque(loader, maxlen=4)
    for _ in range(20):
        for X, _y in loader:
            X.sum()
        del X, _y
        gc.collect()
        used.append(tree_bytes())
    loader.close()
    assert max(used) <= 1.05 * used[0], [round(value / 1e6) for value in used]
