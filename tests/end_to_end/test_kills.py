"""Signals end a run in order wherever it is, and a run that was killed anywhere ends as one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass

import psutil
import pytest

from aftermath import processes_of
from feedrate.system.signals import AT_ONCE_S, PATIENCE_S
from feedrate.trainer import checkpoint
from kills import ROOT, Soak, start_training
from rounds import rounds_at_once
from started import until

pytestmark = pytest.mark.slow
TERM, INT, HUP = signal.SIGTERM, signal.SIGINT, signal.SIGHUP


@dataclass(frozen=True)
class Case:
    """A run that hangs, the signals it gets, its exit code, and what it leaves.

    Attributes:
        where: it hangs, see hanging.py.
        error: in its summary, how it begins; that of a run which is ended since it hangs says so.
        phase: of the checkpoint, None where there is none.
        engine: what its workers are; of themselves they are processes, since the dataset does not say thread_safe.
    """

    where: str
    workers: int
    signals: tuple[signal.Signals, ...]
    code: int
    error: str
    phase: str | None
    engine: str = "auto"


CASES = {
    "SIGTERM while the data set is opened": Case("start", 0, (TERM,), 143, "stopped by SIGTERM", None),
    "SIGTERM while a worker hangs": Case("sample", 1, (TERM,), 143, "stopped by SIGTERM", "training"),
    "SIGTERM while a thread hangs": Case("sample", 1, (TERM,), 143, "stopped by SIGTERM", "training", "thread"),
    "Ctrl-C while a thread hangs in a validation": Case(
        "validation", 2, (INT,), 130, "stopped by SIGINT", "validation", "thread"
    ),
    "Ctrl-C while a sample hangs": Case("sample", 0, (INT,), 130, "stopped by SIGINT", "training"),
    "a terminal closed by a shell, while a worker hangs": Case(
        "sample", 1, (HUP, HUP), 129, "stopped by SIGHUP", "training"
    ),
    "SIGTERM in a validation": Case("validation", 2, (TERM,), 143, "stopped by SIGTERM", "validation"),
    "SIGTERM while a step hangs": Case("step", 0, (TERM,), 143, "stopped by SIGTERM while it hung;", None),
    "Ctrl-C twice while a step hangs": Case("step", 1, (INT, INT), 130, "stopped at once", None),
    "SIGTERM, then Ctrl-C, while a step hangs": Case("step", 0, (TERM, INT), 130, "stopped at once", None),
}


@pytest.fixture(scope="module")
def hanging(tmp_path_factory):
    """All cases' runs, started together, each where it hangs."""
    work = tmp_path_factory.mktemp("hanging")
    common = [f"hydra.searchpath=[file://{ROOT}/tests/conf]", "dataset=hanging", "tracking=none"]
    common += ["trainer.max_epochs=1", "loader.batch_size=8", "loader.prefetch_factor=1"]
    started = {}
    for number, (name, case) in enumerate(CASES.items()):
        note = work / f"note{number}"
        own = ["model=hanging", f"model.note={note}"] if case.where == "step" else ["model=mlp"]
        own += [f"dataset.where={case.where}", f"dataset.note={note}", f"loader.num_workers={case.workers}"]
        own += [f"loader.engine={case.engine}"]
        folder = work / f"run{number}"
        started[name] = start_training(folder, *common, *own, mark=str(folder)), folder, note
    deadline = time.monotonic() + 300
    while not (all(note.exists() for *_, note in started.values()) and at_rest(p for p, *_ in started.values())):
        assert time.monotonic() < deadline, [f.with_suffix(".out").read_text() for _, f, n in started.values()]
        time.sleep(0.1)
    yield started
    for process, *_ in started.values():
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def at_rest(started: Iterable[subprocess.Popen[bytes]]) -> bool:
    """Whether all of them wait, and have computed nothing for a while: where a worker hangs, training waits for it."""
    processes = [psutil.Process(one.pid) for one in started]
    before = [process.cpu_times()[:2] for process in processes]
    time.sleep(0.5)
    asleep = all(process.status() == psutil.STATUS_SLEEPING for process in processes)
    return asleep and before == [process.cpu_times()[:2] for process in processes]


def test_a_run_that_hangs_is_ended_before_those_who_ask_lose_patience():
    assert PATIENCE_S + 1 < 10  # as containers wait
    assert AT_ONCE_S + 1 < 4


@pytest.mark.parametrize("name", CASES)
def test_a_signal_ends_a_run_in_order_wherever_it_hangs(hanging, name):
    case, (process, folder, _) = CASES[name], hanging[name]
    out = folder.with_suffix(".out")
    for signum in case.signals:
        os.killpg(process.pid, signum)
        until(lambda: "stopping in order" in out.read_text())  # the first is heard before the second comes
    code, output = process.wait(timeout=200), out.read_text()  # instead of the thousand seconds that it would hang
    assert code == case.code, output
    assert "Traceback" not in output
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "KILLED"
    assert summary["error"].startswith(case.error)
    assert ("while it hung" in output) == ("while it hung" in case.error)
    assert not list(processes_of(str(folder)))
    assert not list(folder.glob("checkpoints/.*"))
    if case.phase is None:
        assert not (folder / "checkpoints/last.pt").exists()
    else:
        assert checkpoint.load(folder / "checkpoints/last.pt")["phase"] == case.phase
        assert not (folder / "lock").exists()


def test_a_run_whose_worker_is_killed_names_the_signal_and_the_cause_and_goes_on_from_where_it_was(tmp_path):
    """With either loader: as the kernel kills a process where memory has run out."""
    common = [f"hydra.searchpath=[file://{ROOT}/tests/conf]", "dataset=hanging", "dataset.where=killed", "model=mlp"]
    common += ["tracking=none", "trainer.max_epochs=1", "loader.batch_size=4", "loader.prefetch_factor=1"]
    common += ["loader.num_workers=1", "trainer.checkpoint_every_s=0"]

    def start(loader: str, name: str) -> subprocess.Popen[bytes]:
        folder = tmp_path / loader / name
        own = [f"loader={loader}", f"dataset.note={tmp_path / loader / 'note'}"]
        own += ["trainer.resume=auto"] if name == "second" else []
        return start_training(folder, *common, *own)

    for name, code in (("first", 1), ("second", 0)):
        started = {loader: start(loader, name) for loader in ("feedrate", "torch")}
        for loader, process in started.items():
            process.wait(timeout=200)
            output = (tmp_path / loader / f"{name}.out").read_text()
            assert process.returncode == code, output
            if name == "first":
                folder = tmp_path / loader / "first"
                assert output.splitlines()[-3:] == [
                    f"run folder  {folder}   (resume it with trainer.resume=auto)",
                    "error: a worker of the loader was ended by SIGKILL",
                    "Most likely memory ran out: lower loader.num_workers, loader.prefetch_factor or loader.batch_size",
                ]
                assert json.loads((folder / "summary.json").read_text())["status"] == "FAILED"
            else:
                assert f"resuming first after {'15' if loader == 'feedrate' else ''}" in output


def test_SIGTERM_while_a_checkpoint_is_written_lets_it_be_written(tmp_path, digits):
    folder = tmp_path / "run"
    large = ["model=mlp", "model.hidden=[2500,2500]", "trainer.checkpoint_every_s=0", "dataset.limit=256"]
    process = start_training(folder, *large, f"dataset.root={digits}", "tracking=none", "loader.num_workers=1")
    deadline = time.monotonic() + 200
    while not list(folder.glob("checkpoints/.last.*")):
        assert time.monotonic() < deadline
        assert process.poll() is None, folder.with_suffix(".out").read_text()
        time.sleep(0.001)
    os.killpg(process.pid, TERM)
    assert process.wait(timeout=60) == 143
    state = checkpoint.load(folder / "checkpoints/last.pt")
    assert state["step"] >= 1
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "KILLED"
    assert summary["engine"] in ("thread", "process")
    assert summary["slow_samples"] == []  # of samples that are read as a whole batch none is timed
    assert sorted(path.name for path in folder.glob(".[!h]*")) == []
    assert not list(folder.glob("checkpoints/.*"))


def test_runs_that_are_killed_at_random_instants_end_bit_for_bit_as_one_that_was_not(tmp_path, digits):
    soak = Soak(tmp_path, digits, seed=20, epochs=2, exit_s=100)
    soak.run(5)
    assert soak.kills >= 5
    assert not soak.faults, "\n".join(soak.faults)


def test_runs_that_start_in_the_same_instant_on_a_fresh_database_all_finish(tmp_path, digits):
    assert rounds_at_once(tmp_path / "rounds", digits, rounds=1, at_once=4) == []
