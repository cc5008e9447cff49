"""Measures all contenders on all sets in turns, and compares the results with what Feedrate promises.

Each contender has a process of its own; while one is measured the others wait. report.py writes the tables.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any

import psutil
from memory import tree, tree_mb

from peers.contenders import BATCH, CONTENDERS, Contender
from peers.report import report

ROOT = Path(__file__).resolve().parents[2]
PEERS_PYTHON = ROOT / "benchmarks/.venv/bin/python"
STEPS = ("none", "simulated", "cnn")
ANSWER_S = 300.0
COLD_ENOUGH = 0.1  # share of the pages that may still be cached


@dataclass(frozen=True)
class Scope:
    """What is measured, and how often.

    Attributes:
        rounds: measurements of the loader alone; `step_rounds` with a training step, `cold_rounds` of cold files.
        seconds: of each measurement.
        sets: names of the sets, None for all.
        size: samples of each set, None for their own.
    """

    rounds: int = 5
    step_rounds: int = 3
    cold_rounds: int = 3
    seconds: float = 0.3
    sets: tuple[str, ...] | None = None
    size: int | None = None
    contenders: tuple[Contender, ...] = CONTENDERS


@dataclass
class Found:
    """What was measured of one contender on one set.

    Attributes:
        measured: for each step (STEPS) the results of process.py, one per round.
        memory_mb: peak memory of the process tree, without pages of files.
        cold: samples/s of rounds whose files were not in the page cache.
        warm_share: share of the pages that stayed in the page cache when the files were last dropped from it.
        fault: why it could not be measured, else empty.
    """

    contender: Contender
    measured: dict[str, list[dict[str, float]]] = field(default_factory=lambda: {step: [] for step in STEPS})
    memory_mb: float = 0.0
    cold: list[float] = field(default_factory=list)
    warm_share: float = 0.0
    digest: str | None = None
    fault: str = ""


def run(scope: Scope = Scope(), root: Path = ROOT / "data/peers") -> str:
    """The report as Markdown."""
    from dataclasses import replace

    from peers.sets import SETS, make_set

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    found = {}
    with Processes() as processes:
        for of in SETS:
            if scope.sets is not None and of.name not in scope.sets:
                continue
            sized = of if scope.size is None else replace(of, size=scope.size)
            print(f"-- {of.name}: making the files that do not exist yet", flush=True)
            found[sized] = _measure(sized, make_set(sized, root), scope, processes)
    return report(found)


def _measure(of: Any, home: Path, scope: Scope, processes: Processes) -> list[Found]:
    results = [Found(c) for c in scope.contenders if c.ragged or not of.ragged]
    running: list[tuple[Found, Process]] = []
    for result in results:
        with _recorded_failure(result):
            process = processes.start(result.contender, home, of)
            running.append((result, process))
            result.digest = process.call("check", result.contender.kind in ("ours", "memory"))["digest"]
    for step in STEPS:
        for _ in range(scope.rounds if step == "none" else scope.step_rounds):
            print(f"   {step}, {len(running)} contenders", flush=True)
            for result, process in running:
                if not result.fault:
                    with _recorded_failure(result):
                        result.measured[step].append(process.call("measure", scope.seconds, step))
    for result, process in running:
        with _recorded_failure(result):
            if not result.fault:
                result.memory_mb = process.watched_memory("measure", 2 * scope.seconds, "none")
        process.end()
    for _ in range(scope.cold_rounds):
        print("   cold", flush=True)
        for result in results:
            if result.contender.folder is None or result.contender.workers not in (0, 2) or result.fault:
                continue
            result.warm_share = _kept_share(home / result.contender.folder)
            if result.warm_share > COLD_ENOUGH:
                continue
            with _recorded_failure(result):
                process = processes.start(result.contender, home, of)
                answer = process.call("epoch", 1.0)
                result.cold.append(answer["samples"] / answer["seconds"])
                process.end()
    return results


def _kept_share(folder: Path) -> float:
    """Drops a folder from the page cache; returns the share of its pages that stay cached, 0 to 1."""
    from peers.sets import drop_from_page_cache

    for _ in range(3):  # pages being written or read ahead stay cached at first
        share = 1 - drop_from_page_cache(folder)
        if share <= COLD_ENOUGH:
            break
        os.sync()
    return share


class _recorded_failure:
    """Records a failure of one contender in its result, so that the others go on."""

    def __init__(self, result: Found) -> None:
        self.result = result

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if isinstance(error, Failed):
            self.result.fault = str(error)
            print(f"   {self.result.contender.name}: {error}", flush=True)
            return True
        return False


class Failed(Exception):
    """A contender cannot be measured; the text says why."""


class Processes:
    """Starts contenders, each in a process of its own, with the Python of its environment."""

    def __init__(self) -> None:
        self.key = secrets.token_bytes(16)
        self.listener = Listener(family="AF_UNIX", authkey=self.key)
        self.sources: dict[str, subprocess.Popen[str]] = {}
        self.open: list[Process] = []

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.open:
            process.end()
        for source in self.sources.values():
            assert source.stdin is not None
            source.stdin.close()
            source.wait()
        self.listener.close()

    def start(self, contender: Contender, home: Path, of: Any) -> Process:
        """Starts a contender and opens its data set.

        Raises:
            Failed: it cannot be started.
        """
        python = str(PEERS_PYTHON) if contender.kind == "peer" else sys.executable
        if not Path(python).exists():
            raise Failed("not installed: `make bench-peers` makes the peers' environment")
        if python not in self.sources:
            here = Path(__file__).with_name("process.py")
            self.sources[python] = subprocess.Popen(
                [python, str(here), str(self.listener.address), self.key.hex()], stdin=subprocess.PIPE, text=True
            )
        source = self.sources[python]
        assert source.stdin is not None
        source.stdin.write("\n")
        source.stdin.flush()
        process = Process(self.listener.accept())
        self.open.append(process)
        process.call("open", contender.opener, home, of, BATCH, contender.workers, contender.settings)
        return process


class Process:
    """The other side of process.serve."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.pid: int = connection.recv()

    def call(self, command: str, *arguments: Any, meanwhile: Callable[[], None] | None = None) -> Any:
        """Sends a command, and returns the answer; `meanwhile` is called while waiting.

        Raises:
            Failed: the command failed, the process died, or there was no answer in time.
        """
        deadline = time.monotonic() + ANSWER_S
        try:
            self.connection.send((command, arguments))
            while not self.connection.poll(0.05 if meanwhile else 1.0):
                if meanwhile:
                    meanwhile()
                if time.monotonic() > deadline:
                    raise Failed(f"no answer in {ANSWER_S:.0f} s")
            value, reason = self.connection.recv()
        except (EOFError, OSError):
            raise Failed("its process died") from None
        if reason is not None:
            raise Failed(reason)
        return value

    def watched_memory(self, command: str, *arguments: Any) -> float:
        """Peak memory of the process tree during a command, MB."""
        seen = [0.0]
        self.call(command, *arguments, meanwhile=lambda: seen.append(tree_mb(self.pid)))
        return max(seen)

    def end(self) -> None:
        """Ends the contender and its children; returns when all have exited, and their files are no longer mapped."""
        with suppress(Failed):
            self.call("close")
        processes = list(tree(self.pid))
        for process in processes:
            with suppress(psutil.Error):
                process.kill()
        for process in processes:
            with suppress(psutil.Error):
                while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    time.sleep(0.01)
        self.connection.close()
