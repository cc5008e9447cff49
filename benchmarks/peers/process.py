"""The process of a contender, forked from one server process per environment, which has already imported torch.

    python process.py ADDRESS KEY     forks a process for each line of standard input; each connects to ADDRESS

bench.py sends the commands that `serve` answers.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(HERE.parent / "src"), str(HERE)]

import torch  # noqa: E402
from torch import nn  # noqa: E402

from peers.sets import Set  # noqa: E402

WARMUP_BATCHES, WARMUP_S = 12, 0.5  # before a measurement, whichever comes first: uses up batches that were prefetched


def main(address: str, key: str) -> None:
    """Forks a process for each line of standard input; each connects to `address` and serves."""
    while sys.stdin.readline():
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if os.fork() == 0:
            with contextlib.suppress(EOFError):
                serve(Client(address, authkey=bytes.fromhex(key)))
            os._exit(0)


def serve(commands: Connection) -> None:
    """Answers each `(command, arguments)` with `(value, None)` or `(None, reason)`, until the connection is closed."""
    import psutil

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "This DataLoader will create")  # four workers on two cores are intended
    me = psutil.Process()
    commands.send(me.pid)
    contender: Any = None
    of: Any = None
    while True:
        command, arguments = commands.recv()
        try:
            value: Any = None
            if command == "open":
                opener, home, of, batch_size, workers, settings = arguments
                module, _, function = opener.partition(".")
                contender = getattr(importlib.import_module(f"peers.{module}"), function)(
                    home, of, batch_size, workers, **settings
                )
            elif command == "check":
                value = _check(contender, of, *arguments)
            elif command == "measure":
                value = _measure(contender, of, me, *arguments)
            elif command == "epoch":
                value = _epoch(contender, *arguments)
            elif command == "close":
                if hasattr(contender, "close"):
                    contender.close()
                contender = None
            commands.send((value, None))
        except Exception as error:
            reason = " ".join(f"{error}".split())[:200] or type(error).__name__
            if type(error).__name__ not in ("Absent", "ModuleNotFoundError"):
                traceback.print_exc()
                reason = f"{type(error).__name__}: {reason}"
            commands.send((None, reason))


def _check(contender: Any, of: Set, whole: bool) -> dict[str, Any]:
    """Compares the values of an epoch, or of its first three batches, with what was written; gives the order digest."""
    seen: list[int] = []
    for X, y in contender if whole else islice(iter(contender), 3):
        seen += of.check(X, y)
    if len(set(seen)) != len(seen) or (whole and len(seen) != of.size):
        raise ValueError(f"an epoch gave {len(seen)} samples, {len(set(seen))} of them different, of {of.size}")
    return {"digest": contender.order_digest() if whole and hasattr(contender, "order_digest") else None}


def _measure(contender: Any, of: Set, me: Any, seconds: float, step: str) -> dict[str, float]:
    """Takes batches for some seconds after a warm-up; returns samples, wall and CPU seconds, and seconds of waiting."""
    train = _step(of, step)
    batches = _endless(contender)
    begin = time.perf_counter()
    for number, (X, y) in enumerate(batches):
        train(X, y)
        if number + 1 >= WARMUP_BATCHES or time.perf_counter() - begin > WARMUP_S:
            break
    samples = waited = 0
    cpu, begin = _cpu(me), time.perf_counter_ns()
    end = now = begin
    while end - begin < seconds * 1e9:
        now = time.perf_counter_ns()
        following = next(batches)
        waited += time.perf_counter_ns() - now
        X, y = following  # frees the batch before, outside of the timed part
        samples += len(y)
        train(X, y)
        end = time.perf_counter_ns()
    cpu = _cpu(me) - cpu
    batches.close()
    return {"samples": samples, "seconds": (end - begin) / 1e9, "cpu": cpu, "wait": waited / 1e9}


def _epoch(contender: Any, seconds: float) -> dict[str, float]:
    """Takes the batches of one epoch, at most for some seconds; the start of the epoch counts. For cold files."""
    samples, begin = 0, time.perf_counter()
    for _, y in contender:
        samples += len(y)
        if time.perf_counter() - begin > seconds:
            break
    return {"samples": samples, "seconds": time.perf_counter() - begin}


def _endless(contender: Any) -> Iterator[Any]:
    while True:
        yield from contender


def _cpu(me: Any) -> float:
    """CPU seconds of this process and its children."""
    times = [me.cpu_times()]
    for child in me.children(recursive=True):
        with contextlib.suppress(Exception):
            times.append(child.cpu_times())
    return sum(t.user + t.system for t in times) + times[0].children_user + times[0].children_system


def _step(of: Set, step: str) -> Callable[[Any, Any], None]:
    """The training step: 'none', 'simulated' (sleeps, as the host does while a device computes) or 'cnn'."""
    if step == "none":
        return lambda X, y: None
    if step == "simulated":
        return lambda X, y: time.sleep(of.step_ms / 1000)
    torch.manual_seed(0)
    first = nn.Conv1d(32, 32, 9, 4) if of.ragged else nn.Conv2d(3, 8, 5, 4)
    second = nn.Conv1d(32, 32, 5, 2) if of.ragged else nn.Conv2d(8, 16, 3, 2)
    pool = nn.AdaptiveAvgPool1d(1) if of.ragged else nn.AdaptiveAvgPool2d(1)
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), pool, nn.Flatten(), nn.LazyLinear(10))
    model(torch.zeros((1, 32, 64)) if of.ragged else torch.zeros((1, *of.shape)))  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def train(X: Any, y: Any) -> None:
        X = X.transpose(1, 2) if of.ragged else X.float() / 255
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), y).backward()
        optimizer.step()

    return train


if __name__ == "__main__":
    main(*sys.argv[1:])
