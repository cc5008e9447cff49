"""Kills runs at random instants, resumes them, and compares them with a run that was not killed.

One run is left alone; others are killed again and again until there were enough kills. All must end equal bit for bit.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from aftermath import MARK, is_orphan, outcome, processes_of, shared_memory
from feedrate.runs.run_folder import read_summary
from feedrate.runs.saved import mark_dead_runs
from started import comes

ROOT = Path(__file__).resolve().parents[2]
GONE_S = 60.0  # after which nothing of a killed run may be left; a worker looks for its parent each five seconds
KILLED = {signal.SIGKILL: (-signal.SIGKILL,), signal.SIGTERM: (128 + signal.SIGTERM, -signal.SIGTERM)}  # exit codes


def start_training(folder: Path, *overrides: str, mark: str = "") -> subprocess.Popen[bytes]:
    """Starts src/train.py in a process group of its own; the run's folder is `folder`, its output `folder`.out."""
    paths = os.pathsep.join([str(ROOT / "tests/helpers"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".out").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "src/train.py", f"hydra.run.dir={folder}", *overrides],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", MARK: mark},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


@dataclass
class Soak:
    """Kills runs in `work`.

    Attributes:
        data: folder of the digits.
        workers: one of these numbers is taken for each start, and threads or processes.
        record: whether MLflow is used; its database is then looked at, too.
        exit_s: in which a signal must end a run; ten are promised where nothing else keeps the machine busy.
        say: is given a line for each kill.
        kills: how many there were.
        faults: what was not as promised, in words.
    """

    work: Path
    data: Path
    seed: int = 0
    workers: tuple[int, ...] = (0, 1, 2)
    record: bool = False
    epochs: int = 3
    exit_s: float = 10.0
    say: Callable[[str], Any] = print
    kills: int = 0
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._draw = random.Random(self.seed)
        self._starts = 0
        self._shared = shared_memory()

    def run(self, kills: int) -> None:
        """Kills until there were so many; what is not as it should be stands in `faults`."""
        folder, process = self._start("undisturbed", "loader.num_workers=0")
        if process.wait(timeout=300):
            raise RuntimeError(f"the run that is not killed failed:\n{_output(folder)}")
        undisturbed, number = outcome(folder), 0
        while self.kills < kills and not self.faults:
            number += 1
            ended = self._killed(f"run{number}", kills)
            if ended is not None:
                self._compare(ended, undisturbed)
        self._check_nothing_is_left()
        if self.record:
            self._check_record()

    def _start(self, name: str, *overrides: str) -> tuple[Path, subprocess.Popen[bytes]]:
        self._starts += 1
        folder = self.work / name / f"start{self._starts:03d}"
        common = [
            *(f"hydra.searchpath=[file://{ROOT}/tests/conf]", "model=traced", f"model.trace={self.work / name}.trace"),
            *(f"dataset.root={self.data}", "dataset.limit=640", "loader.batch_size=32", *self._tracking()),
            *(f"trainer.max_epochs={self.epochs}", "trainer.num_threads=1"),
        ]
        return folder, start_training(folder, *common, *overrides, mark=str(self.work))

    def _tracking(self) -> list[str]:
        if not self.record:
            return ["tracking=none"]
        return [f"tracking.uri={self.work}/mlflow.db", f"tracking.artifacts={self.work}/artifacts"]

    def _killed(self, name: str, kills: int) -> Path | None:
        """Starts one run again and again until it has ended; its folder, None if it could not be resumed."""
        folder: Path | None = None  # of the run, once there is a checkpoint in it
        line = ""
        while True:
            resume = "auto" if folder is None or self._draw.random() < 0.7 else str(folder)
            fresh, process = self._start(
                name,
                f"trainer.resume={resume}",
                f"loader.num_workers={self._draw.choice(self.workers)}",
                f"loader.engine={self._draw.choice(('thread', 'process'))}",
                f"trainer.checkpoint_every_s={self._draw.choice((0, 0, 0.05, 0.3))}",
                f"trainer.keep_checkpoints={self._draw.choice((0, 1, 2))}",
            )
            kill = self._kill(process, name, folder or fresh) if self.kills < kills else None
            code = process.wait(timeout=300)
            output = _output(fresh)
            found = re.search(r"resuming (\S+) after (\d+) steps", output)
            if line:
                begun = "then begun again" if "a new one begins" in output else "then killed before it had begun"
                self.say(f"{line}, {f'then resumed from step {found[2]}' if found else begun}")
                line = ""
            if code == 0:
                return folder or fresh
            if kill is None or code not in KILLED[kill.signum]:
                self.faults.append(f"{fresh}: exit code {code}\n{output}")
                return None
            status = read_summary(folder or fresh).get("status")
            if code == 128 + signal.SIGTERM and status not in ("KILLED", "FINISHED"):
                self.faults.append(f"{fresh}: exit code {code}, but its status is {status}")
            if status == "FINISHED":
                self.say(f"kill {self.kills:3d}: {kill.text}, exit {code}, when the run had finished")
                mark_dead_runs(self.work / name)  # as the next command does
                return folder or fresh
            if any((fresh / "checkpoints").glob("last*.pt")):
                folder = folder or fresh
            line = f"kill {self.kills:3d}: {kill.text}, exit {code}"

    def _kill(self, process: subprocess.Popen[bytes], name: str, folder: Path) -> _Kill | None:
        """Kills at an instant of its own choice; None if the process had ended before."""
        begin, trace, target = time.monotonic(), _Trace(self.work / f"{name}.trace"), folder / "checkpoints"
        aim = self._draw.choices(("start", "training", "checkpoint"), (1, 3, 4))[0]
        if aim == "start":
            comes(lambda: process.poll() is not None, self._draw.uniform(0.3, 5.0))
        else:
            comes(lambda: trace.grows() or process.poll() is not None, 120)
        if aim == "training":
            comes(lambda: process.poll() is not None, self._draw.uniform(0, 1.0))
        elif aim == "checkpoint":
            for _ in range(self._draw.randint(1, 12)):
                comes(lambda: not _being_written(target), 1, pause=0.0002)
                comes(lambda: _being_written(target) or process.poll() is not None, 1, pause=0.0002)
            time.sleep(self._draw.uniform(0, 0.004))
        signum = self._draw.choice((signal.SIGKILL, signal.SIGTERM))
        to_group = self._draw.random() < 0.5
        phase = "a checkpoint being written" if _being_written(target) else trace.phase()
        if process.poll() is not None:
            return None
        (os.killpg if to_group else os.kill)(process.pid, signum)
        self.kills += 1
        sent = time.monotonic()
        if not comes(lambda: process.poll() is not None, self.exit_s):
            self.faults.append(f"{folder}: {signum.name} did not end it within {self.exit_s:.0f} s ({phase})")
            process.kill()
        whom = "the group" if to_group else "the process"
        text = f"{sent - begin:5.2f} s after its start {signum.name} to {whom} in {phase}, ended in"
        return _Kill(signum, f"{text} {time.monotonic() - sent:.2f} s")

    # -----------------------------------------------------------------------------------------------------
    # what must be
    # -----------------------------------------------------------------------------------------------------

    def _compare(self, folder: Path, undisturbed: dict[str, Any]) -> None:
        ours = outcome(folder)
        different = [key for key, value in undisturbed.items() if ours[key] != value]
        if different:
            self.faults.append(f"{folder}: {', '.join(different)} differ from the run that was not killed")
        for start in folder.parent.iterdir():
            status = read_summary(start).get("status") if start.is_dir() else None
            if status == "RUNNING":
                self.faults.append(f"{start}: is said to be running")
            left = [*start.glob("lock"), *start.glob(".[!h]*"), *start.glob("checkpoints/.*")]
            self.faults += [f"{path}: left behind" for path in left]
        self.say(f"{folder.parent.name}: {'different' if different else 'equal bit for bit'}")

    def _check_record(self) -> None:
        """In MLflow each run is true to its summary.json, and one that finished has each epoch's metrics once."""
        with sqlite3.connect(self.work / "mlflow.db") as database:
            recorded = dict(database.execute("SELECT run_uuid, status FROM runs"))
            for start in sorted(self.work.glob("*/*/summary.json")):
                summary = read_summary(start.parent)
                run_id = summary.get("run_id")
                if run_id is None:  # killed before it had one
                    continue
                status = recorded.pop(run_id, "not there")
                query = "SELECT step FROM metrics WHERE run_uuid = ? AND key = 'train/loss' ORDER BY step"
                steps = [step for (step,) in database.execute(query, [run_id])]
                wanted = list(range(self.epochs)) if status == "FINISHED" else steps
                if status != summary["status"] or steps != wanted:
                    said = f"{summary['status']} in summary.json, {status} in MLflow, epochs {steps}"
                    self.faults.append(f"{start.parent}: {said}")
        for run_id, status in recorded.items():
            if status == "RUNNING":
                self.faults.append(f"run {run_id} in MLflow, of a process that was killed at its start: {status}")

    def _check_nothing_is_left(self) -> None:
        own = os.getpid()

        def left() -> list[str]:
            processes = [f"process {p.pid}: {_command(p)}" for p in processes_of(str(self.work), own)]
            return processes + [f"/dev/shm/{name}" for name in shared_memory() - self._shared if is_orphan(name)]

        if not comes(lambda: not left(), GONE_S, pause=0.5):  # other programs use shared memory, too, for a moment
            self.faults += [f"{name}: left behind" for name in left()]


@dataclass(frozen=True)
class _Kill:
    signum: signal.Signals
    text: str


class _Trace:
    """The file that traced.Net writes, since a process was started."""

    def __init__(self, path: Path) -> None:
        self._path, self._begin = path, path.stat().st_size if path.exists() else 0

    def grows(self) -> bool:
        return self._path.exists() and self._path.stat().st_size > self._begin

    def phase(self) -> str:
        if not self.grows():
            return "its start"
        kind, step = self._path.read_text().splitlines()[-1].split()[:2]
        return f"{'training' if kind == 'train' else kind} after step {step}"


def _output(folder: Path) -> str:
    return folder.with_suffix(".out").read_text(errors="replace")


def _command(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return "ended just now"


def _being_written(checkpoints: Path) -> bool:
    with contextlib.suppress(OSError):
        return any(name.startswith(".") for name in os.listdir(checkpoints))  # noqa: PTH208 faster, for the aim's sake
    return False
