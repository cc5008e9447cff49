"""However a program ends, its loader leaves nothing behind; and however long it loads, its memory stays the same."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch.utils.data import Dataset

from aftermath import MARK, is_orphan, processes_of, shared_memory
from feedrate.loader import Batch, Loader, ToDevice
from feedrate.loader.transfer import CopyStream
from feedrate.signals import STOPPING
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


KILLED_WORKERS = """
import multiprocessing
import torch
from feedrate.loader import Loader

class Dictionaries(torch.utils.data.Dataset):  # travel as tensors, through a socket of the worker's
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {"X": torch.ones(100), "y": index}

loader = Loader(Dictionaries(), 4, seed=0, engine="process", num_workers=2, persistent_workers=True)
list(loader)
for worker in multiprocessing.active_children():
    worker.kill()
"""


def test_workers_that_are_killed_leave_no_temporary_folder(tmp_path: Path) -> None:
    paths = str(Path(ending.__file__).parents[2] / "src")
    environment = {**os.environ, "PYTHONPATH": paths, "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", KILLED_WORKERS], env=environment, check=True, timeout=60)
    assert not list(tmp_path.iterdir())


BUSY_IN_TORCH = """
import sys, time
import torch
from feedrate.loader import Loader

def busy(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        torch.ones(10) + 1  # lets go of the interpreter, and may not come back when that has gone
    return torch.ones(10)

class Costly:  # to be made again by who receives it
    def __reduce__(self):
        return busy, (0.1,)

class Samples(torch.utils.data.Dataset):
    def __len__(self):
        return 100

    def __getitem__(self, index):
        return Costly() if engine == "process" else busy(0.1)

engine, persistent = sys.argv[1], sys.argv[2] == "persistent"
loader = Loader(
    Samples(), 4, seed=0, engine=engine, num_workers=1, persistent_workers=persistent, collate_fn=lambda made: made
)
batches = iter(loader)
next(batches)
sys.exit(3)
"""


@pytest.mark.parametrize("persistent", ["persistent", "no"])
@pytest.mark.parametrize("engine", ["thread", "process"])
def test_no_thread_is_in_torch_when_python_ends(engine: str, persistent: str) -> None:
    """torch would abort the process then, with exit code -6."""
    environment = {**os.environ, "PYTHONPATH": str(Path(ending.__file__).parents[2] / "src")}
    program = [sys.executable, "-c", BUSY_IN_TORCH, engine, persistent]
    begin = time.monotonic()
    ended = subprocess.run(program, env=environment, stderr=subprocess.PIPE, timeout=60, text=True)
    assert (ended.returncode, ended.stderr) == (3, ""), time.monotonic() - begin


CLOSED_TERMINAL = """
import os, signal, torch
from feedrate.loader import Loader

if __name__ == "__main__":
    data = torch.utils.data.TensorDataset(torch.ones(8, 100))
    loader = Loader(data, 4, seed=0, engine="process", num_workers=1, multiprocessing_context="spawn")
    batches = iter(loader)
    next(batches)
    signal.signal(signal.SIGHUP, lambda *_: None)
    os.killpg(0, signal.SIGHUP)
    next(batches)
"""


@pytest.mark.slow
def test_the_helpers_of_multiprocessing_outlive_a_closed_terminal_too(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(CLOSED_TERMINAL)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")],
        env={**os.environ, "PYTHONPATH": str(Path(ending.__file__).parents[2] / "src")},
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.usefixtures("no_workers_left", "no_threads_left")
@pytest.mark.parametrize("signum", STOPPING, ids=lambda signum: signum.name)
def test_workers_outlive_a_signal_that_is_meant_for_the_program(signum: signal.Signals) -> None:
    loader = Loader(Numbered(), 4, seed=0, engine="process", num_workers=2, persistent_workers=True)
    batches = iter(loader)
    seen = [len(next(batches)[1])]
    for worker in multiprocessing.active_children():
        os.kill(worker.pid or 0, signum)
    seen += [len(y) for _, y in batches]
    assert sum(seen) == len(Numbered())
    loader.close()


AT_BIRTH: list[signal.Signals] = []  # what a process that is forked here gets before it does anything
os.register_at_fork(after_in_child=lambda: [os.kill(os.getpid(), signum) for signum in AT_BIRTH])


@pytest.mark.usefixtures("no_workers_left", "no_threads_left")
def test_workers_outlive_such_signals_before_they_have_begun() -> None:
    loader = Loader(Numbered(), 4, seed=0, engine="process", num_workers=2, multiprocessing_context="fork")
    AT_BIRTH.extend(STOPPING)
    try:
        seen = [len(y) for _, y in loader]
    finally:
        AT_BIRTH.clear()
    assert sum(seen) == len(Numbered())
    loader.close()


@pytest.mark.usefixtures("no_workers_left", "no_threads_left")
@pytest.mark.parametrize("engine", ENGINES)
def test_no_descriptor_is_left_by_a_loader_that_was_closed(engine: str) -> None:
    def open_now() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    def once() -> None:
        workers = 0 if engine == "inline" else 2
        loader = Loader(Numbered(), 4, seed=0, engine=engine, num_workers=workers, persistent_workers=workers > 0)
        list(loader)
        next(iter(loader))
        loader.close()
        del loader
        gc.collect()
        wait_for(lambda: not any("QueueFeeder" in thread.name for thread in threading.enumerate()))  # torch's

    once()
    first = open_now()  # what torch opens once
    for _ in range(3):
        once()
        wait_for(lambda: open_now() <= first, seconds=5)


# ---------------------------------------------------------------------------------------------------------
# memory that is used again
# ---------------------------------------------------------------------------------------------------------


class LateStream(CopyStream):
    """Stands in for a device that carries out a copy at the last moment that it is given, when it is waited for.

    As a device does, it reads the memory that it was told to read, whoever owns it by then.
    """

    def __init__(self) -> None:
        pass

    def issue(self, host: Batch) -> tuple[Batch, Any]:
        memory = (ctypes.c_char * host.X.nbytes).from_address(host.X.data_ptr())
        X = torch.full_like(host.X, -1)
        return replace(host, X=X, y=host.y.clone()), LateEvent(memory, X)

    def hand_over(self, batch: Batch, done: Any) -> None:
        pass


class LateEvent:
    def __init__(self, memory: Any, target: torch.Tensor) -> None:
        self._memory, self._target = memory, target

    def synchronize(self) -> None:
        found = np.frombuffer(self._memory, dtype=self._target.numpy().dtype)
        self._target.copy_(torch.from_numpy(found).view(self._target.shape))


@pytest.mark.usefixtures("no_workers_left", "no_threads_left")
@pytest.mark.parametrize("engine", ENGINES)
def test_memory_is_not_filled_again_before_a_late_copy_from_it_is_complete(engine: str) -> None:
    workers = 0 if engine == "inline" else 2
    settings = {"engine": engine, "num_workers": workers, "persistent_workers": workers > 0}
    loader, places = Loader(Numbered(), 4, seed=0, **settings), set()
    for _ in range(3):
        transfer = ToDevice(loader, torch.device("cpu"), check=lambda host: places.add(host.X.data_ptr()))
        for batch in list(transfer._ahead(iter(loader), LateStream())):
            assert torch.equal(batch.X, batch.y[:, None, None, None].expand_as(batch.X).int())
    assert len(places) < 3 * 24  # of the batches: it was used again
    loader.close()


@pytest.mark.usefixtures("no_workers_left", "no_threads_left")
@pytest.mark.parametrize("engine", ENGINES)
def test_memory_that_the_user_holds_for_long_is_not_filled_again(engine: str) -> None:
    workers = 0 if engine == "inline" else 2
    settings = {"engine": engine, "num_workers": workers, "persistent_workers": workers > 0}
    loader = Loader(Numbered(), 4, seed=0, **settings)
    held: deque[Any] = deque(maxlen=9)
    for _ in range(2):
        for X, y in loader:
            held.append((X[1:], y))
            for part, names in held:
                assert torch.equal(part, names[1:, None, None, None].expand_as(part).int())
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


ORPHAN = """
import os, signal, sys, time
import torch
from feedrate.loader import Loader

def kill_the_parent(worker_id):
    parent = os.getppid()
    os.kill(parent, signal.SIGKILL)
    while os.getppid() == parent:
        time.sleep(0.01)

data = torch.utils.data.TensorDataset(torch.zeros(64, 4), torch.zeros(64))
next(iter(Loader(data, 4, seed=0, engine="process", num_workers=1, worker_init_fn=kill_the_parent)))
"""


@pytest.mark.slow
def test_a_worker_whose_program_is_killed_while_it_starts_ends_too(tmp_path: Path) -> None:
    (tmp_path / "orphan.py").write_text(ORPHAN)
    source = str(Path(ending.__file__).parents[2] / "src")
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "orphan.py")],
        env={**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", MARK: str(tmp_path)},
    )
    assert process.wait(timeout=120) == -signal.SIGKILL
    try:
        wait_for(lambda: not list(processes_of(str(tmp_path))), 30)
    finally:
        for left in processes_of(str(tmp_path)):
            left.kill()
