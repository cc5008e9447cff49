"""However a program ends, its loader leaves nothing behind."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from aftermath import MARK, is_orphan, processes_of, shared_memory
from feedrate.dataset.time_limit import RUNNING
from feedrate.loader import Loader
from feedrate.loader.engines.receiver import NAME
from feedrate.system.signals import STOPPING
from loader import ending
from loader.conftest import wait_until_loaders_are_gone
from loader.test_buffers import Numbered

ENGINES = ("inline", "thread", "process")
CODES = {"end": 0, "exception": 1, "exit": 3, "Ctrl-C": -signal.SIGINT, "SIGKILL": -signal.SIGKILL}


def wait_for(there: Callable[[], bool], seconds: float = 120) -> None:
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
        _, said = process.communicate(timeout=120)
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
    subprocess.run([sys.executable, "-c", KILLED_WORKERS], env=environment, check=True, timeout=200)
    assert not list(tmp_path.iterdir())


BUSY_IN_TORCH = """
import sys, time
import torch
from feedrate.loader import Loader

def busy(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        torch.ones(10) + 1  # releases the GIL, and may not take it again once Python has ended
    return torch.ones(10)

class Costly:  # built again where it is received
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


def test_no_thread_is_in_torch_when_python_ends() -> None:
    """Otherwise torch aborts the process, with exit code -6."""
    environment = {**os.environ, "PYTHONPATH": str(Path(ending.__file__).parents[2] / "src")}
    for engine in ("thread", "process"):
        started = [
            subprocess.Popen(
                [sys.executable, "-c", BUSY_IN_TORCH, engine, way], env=environment, stderr=subprocess.PIPE, text=True
            )
            for way in ("persistent", "no")
        ]
        for process in started:
            said = process.communicate(timeout=200)[1]
            assert (process.returncode, said) == (3, ""), engine


# ---------------------------------------------------------------------------------------------------------
# workers that no loader refers to
# ---------------------------------------------------------------------------------------------------------

HANGING = """
import multiprocessing, sys, time
import torch
from feedrate.loader import Loader

class Hanging(torch.utils.data.Dataset):
    def __len__(self):
        return 100

    def __getitem__(self, index):
        if index in hanging:
            time.sleep(1000)
        if index in busy:
            while True:
                torch.ones(10) + 1
        return torch.full((100,), index)

hanging, busy = (), ()

def loader(engine="process", **settings):
    return Loader(Hanging(), 4, seed=0, engine=engine, num_workers=2, **settings)
"""
TWO_PASSES = """
made = loader()
first = iter(made)
for _ in iter(made):
    pass
"""
NEVER_ASKED = """
hanging = (5,)
batches = iter(loader())
del batches
"""
BUSY = """
busy = range(4, 100)
batches = iter(loader("thread"))
next(batches)
"""


def run_to_its_end(folder: Path, program: str, *arguments: str) -> tuple[int, str]:
    """Exit code and last words of a program that begins with HANGING; it has a minute."""
    (folder / "program.py").write_text(HANGING + program)
    environment = {**os.environ, "PYTHONPATH": str(Path(ending.__file__).parents[2] / "src")}
    command = [sys.executable, str(folder / "program.py"), *arguments]
    ended = subprocess.run(command, env=environment, stderr=subprocess.PIPE, timeout=60, text=True)
    return ended.returncode, ended.stderr


def test_the_workers_of_a_pass_that_was_never_asked_for_a_batch_keep_no_program_from_ending(tmp_path: Path) -> None:
    assert run_to_its_end(tmp_path, TWO_PASSES) == (0, "")


# torch's iterator of the first loader lies in a circle of references, as an error's traceback makes one, and is found
# by the collector in a worker of the second
COLLECTED = """
import gc
import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
from feedrate.loader import Loader

class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, index):
        gc.collect()
        return torch.tensor(float(index)), index

if __name__ == "__main__":
    gc.disable()
    for _ in range(2):
        loader = Loader(Numbers(), 4, seed=0, num_workers=1, engine="process", persistent_workers=True)
        assert len(list(loader)) == 2
        circle = [one for one in gc.get_objects() if issubclass(type(one), _MultiProcessingDataLoaderIter)]
        assert circle
        circle.append(circle)
        del circle
        loader.close(at_once=True)
"""


def test_workers_say_nothing_of_the_iterators_that_their_parent_is_done_with(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(COLLECTED)
    environment = {**os.environ, "PYTHONPATH": str(Path(ending.__file__).parents[2] / "src")}
    ended = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")], env=environment, stderr=subprocess.PIPE, timeout=60, text=True
    )
    assert (ended.returncode, ended.stderr) == (0, "")


FORKED = """
import gc, os
import torch

os.register_at_fork(after_in_child=gc.collect)  # as it may come by itself, before anything else in a new process
gc.disable()
from feedrate.loader import Loader

data = torch.utils.data.TensorDataset(torch.zeros(64, 4), torch.zeros(64))
loader = Loader(data, 4, seed=0, engine="process", num_workers=1, multiprocessing_context="fork")
batches = iter(loader)
next(batches)
circle = [loader._engine._started.iterator]
circle.append(circle)
del batches, circle
loader.close(at_once=True)
if (pid := os.fork()) == 0:
    os._exit(0)
os.waitpid(pid, 0)
"""


def test_a_process_that_is_forked_has_nothing_to_say_about_workers_of_another() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(ending.__file__).parents[2] / "src")}
    ended = subprocess.run(
        [sys.executable, "-c", FORKED], env=environment, stderr=subprocess.PIPE, timeout=200, text=True
    )
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.slow  # torch waits for such a worker for ten seconds
def test_a_sample_that_hangs_in_a_loader_that_is_gone_keeps_no_program_from_ending(tmp_path: Path) -> None:
    assert run_to_its_end(tmp_path, NEVER_ASKED) == (0, "")


@pytest.mark.slow  # five seconds are waited for it
def test_a_thread_that_computes_without_end_does_not_abort_the_end_of_python(tmp_path: Path) -> None:
    assert run_to_its_end(tmp_path, BUSY) == (0, "")


IN_A_PROCESS = """
def job(persistent):
    for _ in loader(persistent_workers=persistent):
        raise ValueError("no more")

if __name__ == "__main__":
    process = multiprocessing.get_context(sys.argv[1]).Process(target=job, args=(sys.argv[2] == "persistent",))
    process.start()
    process.join()
    sys.exit(process.exitcode)
"""


@pytest.mark.parametrize(("method", "persistent"), [("fork", "no"), ("spawn", "persistent")])
def test_an_error_ends_a_process_that_loads_and_was_started_by_multiprocessing(
    method: str, persistent: str, tmp_path: Path
) -> None:
    """It holds the loader until its workers have been waited for."""
    code, said = run_to_its_end(tmp_path, IN_A_PROCESS, method, persistent)
    assert code == 1
    assert said.strip().endswith("ValueError: no more")
    assert said.count("Traceback") == 1


@pytest.mark.usefixtures("no_workers_left", "no_threads_left")
@pytest.mark.parametrize("engine", ["thread", "process"])
def test_closing_ends_who_serves_a_pass_that_somebody_holds_and_so_does_the_next_pass(engine: str) -> None:
    def alive() -> int:
        threads = [thread for thread in RUNNING if thread.is_alive() and thread.name != NAME]
        return len(multiprocessing.active_children()) + len(threads)

    loader, before = Loader(Numbered(), 4, seed=0, engine=engine, num_workers=2), alive()
    held = iter(loader)
    next(held)
    following = iter(loader)
    next(following)
    wait_for(lambda: alive() == before + 2, seconds=10)
    loader.close()
    wait_for(lambda: alive() == before, seconds=10)


class Locked(Numbered):
    """A worker holds, in sample 8, the lock of the event by which torch tells it to end, as it does at times."""

    def __init__(self, note: Path) -> None:
        self.note = note

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index == 8:
            frame = sys._getframe()
            while "done_event" not in frame.f_locals:
                assert frame.f_back is not None
                frame = frame.f_back
            with frame.f_locals["done_event"]._cond:
                self.note.touch()
                time.sleep(1000)
        return super().__getitem__(index)


@pytest.mark.usefixtures("no_workers_left")
@pytest.mark.parametrize("persistent", [False, True])
def test_a_worker_may_be_killed_whatever_it_holds(persistent: bool, tmp_path: Path) -> None:
    before = set(multiprocessing.active_children())
    data = Locked(tmp_path / "note")
    loader = Loader(data, 4, seed=0, engine="process", num_workers=2, persistent_workers=persistent)
    batches = iter(loader)
    next(batches)
    wait_for(data.note.exists)
    loader.close(at_once=True)
    del batches  # with torch's iterator
    gc.collect()
    assert set(multiprocessing.active_children()) <= before


class Slow(Numbered):
    """Samples of the second batch and those after it take an hour."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        time.sleep(3600 * (index >= 4))
        return super().__getitem__(index)


@pytest.mark.slow  # five seconds are waited for them
@pytest.mark.usefixtures("no_workers_left")
@pytest.mark.parametrize("persistent", [False, True])
def test_closing_waits_once_for_all_workers_and_leaves_none(persistent: bool) -> None:
    loader = Loader(Slow(), 4, seed=0, engine="process", num_workers=2, persistent_workers=persistent)
    batches = iter(loader)
    next(batches)
    begin = time.monotonic()
    loader.close()
    assert not multiprocessing.active_children()
    assert time.monotonic() - begin < 60


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

    settings: dict[str, Any] = {"engine": engine}
    if engine != "inline":
        settings |= {"num_workers": 2, "persistent_workers": True}
    if engine == "process":  # the server of another start method would have descriptors of its own
        settings |= {"multiprocessing_context": "fork"}

    def once() -> None:
        loader = Loader(Numbered(), 4, seed=0, **settings)
        list(loader)
        next(iter(loader))
        loader.close()
        del loader
        gc.collect()
        wait_until_loaders_are_gone(others)

    others = set(threading.enumerate())
    once()
    first = open_now()  # what torch opens once
    for _ in range(3):
        once()
        wait_for(lambda: open_now() <= first)


UNGUARDED = """
import pathlib, sys, threading, time
import torch
from feedrate.loader import Loader

method, engine, record = sys.argv[1:]
data = torch.utils.data.TensorDataset(torch.zeros(8, 4), torch.zeros(8))
if method == "forkserver":  # as it is then chosen
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
chosen = None if method == "forkserver" else method
loader = Loader(data, 4, seed=0, engine=engine, num_workers=2, multiprocessing_context=chosen)
for _ in loader:
    with pathlib.Path(record).open("a") as file:
        file.write("a batch\\n")
"""


def test_a_program_that_its_workers_would_run_again_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(UNGUARDED)
    environment = {**os.environ, "PYTHONPATH": str(Path(ending.__file__).parents[2] / "src")}
    record = tmp_path / "record"
    started = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "program.py"), method, engine, str(record)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for method, engine in (("forkserver", "process"), ("spawn", "auto"))
    ]
    for process in started:
        _, said = process.communicate(timeout=200)
        assert process.returncode == 1
        *_, error, remedy = said.strip().splitlines()
        assert error.startswith("feedrate.errors.")
        assert remedy.startswith('Put what the program runs behind `if __name__ == "__main__":`')
        assert said.count("was about to run the whole program again") <= 2  # one of the two workers may have no time
        assert "spawn.py" not in said
    assert not record.exists()
