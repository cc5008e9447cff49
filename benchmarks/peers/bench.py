"""Measures all contenders on all sets, interleaved, and says what came out against what was promised.

Each contender has a process of its own; while one is measured the others wait. Tables are in report.py.
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
COLD_ENOUGH = 0.1  # share of pages


@dataclass(frozen=True)
class Scope:
    """How much is measured.

    Attributes:
        rounds: of the loader alone; `step_rounds` with a training step, `cold_rounds` without the page cache.
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
        measured: for each step (STEPS) the answers of process.py, a round each.
        memory_mb: highest of the process tree, pages of files left out.
        cold: samples/s of rounds whose files were not in the page cache.
        warm_share: share of the files' pages that the system kept the last time it was asked to forget them.
        fault: why there are no figures.
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
            print(f"-- {of.name}: making the files where they are not there yet", flush=True)
            found[sized] = _measure(sized, make_set(sized, root), scope, processes)
    return report(found)


def _measure(of: Any, home: Path, scope: Scope, processes: Processes) -> list[Found]:
    results = [Found(c) for c in scope.contenders if c.ragged or not of.ragged]
    running: list[tuple[Found, Process]] = []
    for result in results:
        with _noted(result):
            process = processes.start(result.contender, home, of)
            running.append((result, process))
            result.digest = process.ask("check", result.contender.kind in ("ours", "memory"))["digest"]
    for step in STEPS:
        for _ in range(scope.rounds if step == "none" else scope.step_rounds):
            print(f"   {step}, {len(running)} contenders", flush=True)
            for result, process in running:
                if not result.fault:
                    with _noted(result):
                        result.measured[step].append(process.ask("measure", scope.seconds, step))
    for result, process in running:
        with _noted(result):
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
            with _noted(result):
                process = processes.start(result.contender, home, of)
                answer = process.ask("pass", 1.0)
                result.cold.append(answer["samples"] / answer["seconds"])
                process.end()
    return results


def _kept_share(folder: Path) -> float:
    """Drops a folder from the page cache; the share of its pages that the system keeps, 0 to 1."""
    from peers.sets import drop_from_page_cache

    for _ in range(3):  # pages that are just being written or read ahead stay the first time
        share = 1 - drop_from_page_cache(folder)
        if share <= COLD_ENOUGH:
            break
        os.sync()
    return share


class _noted:
    """What goes wrong for one contender is a note in its row."""

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
    """Starts contenders, each in a process of its own, in its environment."""

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
        """The contender, opened.

        Raises:
            Failed: it cannot be.
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
        process.ask("open", contender.opener, home, of, BATCH, contender.workers, contender.settings)
        return process


class Process:
    """The other side of process.serve."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.pid: int = connection.recv()

    def ask(self, command: str, *arguments: Any, meanwhile: Callable[[], None] | None = None) -> Any:
        """The answer.

        Raises:
            Failed: there is none, or it is a reason why not.
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
        """Highest memory of the process tree while it answers, MB."""
        seen = [0.0]
        self.ask(command, *arguments, meanwhile=lambda: seen.append(tree_mb(self.pid)))
        return max(seen)

    def end(self) -> None:
        """Ends the contender with all that it started; returns when they are gone, and their mappings of files too."""
        with suppress(Failed):
            self.ask("close")
        all_of_it = list(tree(self.pid))
        for process in all_of_it:
            with suppress(psutil.Error):
                process.kill()
        for process in all_of_it:
            with suppress(psutil.Error):
                while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    time.sleep(0.01)
        self.connection.close()
