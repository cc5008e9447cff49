"""One loader under measurement, in a process of its own, so that its memory and CPU time are its own.

What is measured when, and what becomes of it, is compare.py's affair.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

from feedrate.errors import UserError
from feedrate.system.signals import STOPPING, ignore, signals_blocked

DIGEST_BATCHES = 16  # the first ones, over whose IDs order_digest goes
FED_PCT = 2.0  # of waiting at most, where a loader suffices
COPY_S = 0.2  # of each measurement of the machine's own limits
_MB = 1e6


@dataclass(frozen=True)
class Taken:
    """One measurement.

    Attributes:
        samples_per_s, mb_per_s, wait_pct: of the steady steps.
        cpu_s_per_1000: CPU seconds of loader and main process for 1,000 samples.
        peak_rss_mb: memory of the main process, and what its workers have for themselves.
        ceiling_samples_per_s: what the loader can make.
        load_ms: what a batch takes in its worker, the middle one; 0 where unknown.
        stages_pct: what the load is made of, by stage.
        sufficient_step_ms: the shortest step that it feeds with FED_PCT of waiting at most, as its costs tell; 0 where
            unknown.
    """

    samples_per_s: float
    mb_per_s: float
    wait_pct: float
    cpu_s_per_1000: float
    peak_rss_mb: float
    ceiling_samples_per_s: float
    load_ms: float
    stages_pct: Mapping[str, float]
    sufficient_step_ms: float


@dataclass(frozen=True)
class About:
    """What is measured.

    Attributes:
        dataset: its name. samples: of the training partition. sample_bytes: of an X and its y, on average.
        batch_size, workers, engine: of the loader.
        order_digest: over the first DIGEST_BATCHES batches, empty for a loader without a seed.
        copy_samples_per_s: at which this machine copies batches from memory to memory, one core.
        read_samples_per_s: at which it reads the samples' files from one thread, 0 where they are no files.
    """

    dataset: str
    samples: int
    sample_bytes: float
    batch_size: int
    workers: int
    engine: str
    order_digest: str
    copy_samples_per_s: float
    read_samples_per_s: float


class Subject:
    """A loader in a process of its own.

    Args:
        config: resolved, with dataset, loader and seed.

    Raises:
        UserError: the configuration or the data is wrong; also from its methods.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        # no daemon, since those may have no children: the loader's workers
        self._process = context.Process(target=_serve, args=(dict(config), other))
        with signals_blocked(signal.SIGHUP):
            resource_tracker.ensure_running()  # in its start it makes signals heard again that are `unheard`
        with signals_blocked(*STOPPING):  # they are for the main process, which ends this one
            self._process.start()
        other.close()

    def about(self) -> About:
        """Waits until the loader runs."""
        found: About = self._answer()
        return found

    def measure(self, step_ms: float, seconds: float) -> Taken:
        """With steps of that length, which sleep."""
        found: Taken = self._answer((step_ms, seconds))
        return found

    def _answer(self, asked: tuple[float, float] | None = None) -> Any:
        try:
            if asked is not None:
                self._connection.send(asked)
            found = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            raise UserError(
                f"the process of a loader ended with exit code {self._process.exitcode}; "
                "loader.num_workers=0 shows which sample made it end"
            ) from None
        if isinstance(found, Exception):
            raise found
        return found

    def close(self) -> None:
        """Ends the process and its workers."""
        with contextlib.suppress(OSError):
            self._connection.send(None)
        self._connection.close()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


# ---------------------------------------------------------------------------------------------------------
# in that process
# ---------------------------------------------------------------------------------------------------------


def _serve(config: dict[str, Any], connection: Connection) -> None:
    ignore(STOPPING)
    import logging

    import torch

    logging.getLogger("feedrate").setLevel(logging.ERROR)
    from feedrate.config import timeout_of
    from feedrate.dataset import build_data
    from feedrate.loader import build_loaders, close_loaders

    loaders: dict[str, Any] = {}
    try:
        data = build_data(config["dataset"], config["seed"], timeout=timeout_of(config["loader"]))
        loaders = build_loaders(config["loader"], data, config["seed"], torch.device("cpu"))
        loader = loaders["train"]
        batches = _Batches(loader)
        connection.send(_look(data.name, loader, batches))
        while (asked := connection.recv()) is not None:
            connection.send(_taken(batches, *asked))
    except EOFError:  # whoever asked is gone
        pass
    except Exception as error:
        told = error if isinstance(error, UserError) else UserError(f"{type(error).__name__}: {error}")
        with contextlib.suppress(OSError):  # whoever asked is gone
            connection.send(told)
    finally:
        close_loaders(loaders, at_once=True)


class _Batches:
    """The batches of one epoch after another, timed by whichever clock is set."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.clock: Any = None
        self._each = self._endless()

    def __iter__(self) -> Iterator[Any]:
        return self._each

    def lap(self, phase: str) -> None:
        """As Clock's."""
        if self.clock is not None:
            self.clock.lap(phase)

    def epoch(self) -> Any:
        """As Clock's, of the clock that is set."""
        return self.clock.epoch()

    def _endless(self) -> Iterator[Any]:
        import torch

        from feedrate.loader import ToDevice

        while True:
            yield from ToDevice(self.loader, torch.device("cpu"), self)  # type: ignore[arg-type]


def _look(name: str, loader: Any, batches: _Batches) -> About:
    """The first batches, and this machine's own limits for such ones."""
    nbytes = samples = 0
    digest = ""
    count = min(DIGEST_BATCHES, len(loader))
    for number, batch in enumerate(batches, 1):
        nbytes, samples = nbytes + batch.info.nbytes, samples + len(batch.X)
        if number == count:
            digest = loader.order_digest()
            X = batch.X
            break
    each = nbytes / samples
    return About(
        dataset=name,
        samples=len(loader.dataset),
        sample_bytes=each,
        batch_size=loader.batch_size or 1,
        workers=loader.num_workers,
        engine=loader.engine,
        order_digest=digest,
        copy_samples_per_s=_copied(X),
        read_samples_per_s=_read(loader.dataset),
    )


def _copied(X: Any) -> float:
    import torch

    into, count, begin = torch.empty_like(X), 0, time.perf_counter()
    while (spent := time.perf_counter() - begin) < COPY_S:
        into.copy_(X)
        count += len(X)
    return count / spent


def _read(dataset: Any) -> float:
    """Samples per second of nothing but opening files and reading them, the first 500 again and again."""
    path, names = getattr(dataset, "path", None), getattr(dataset, "list_IDs", None)
    if not callable(path) or names is None:
        return 0.0
    paths = [str(path(names[index])) for index in range(min(500, len(names)))]
    memory, count, begin = bytearray(1 << 24), 0, time.perf_counter()
    try:
        while (spent := time.perf_counter() - begin) < COPY_S:
            with open(paths[count % len(paths)], "rb", buffering=0) as file:  # noqa: PTH123 - the quickest way
                file.readinto(memory)
            count += 1
    except OSError:  # samples are no files of their own
        return 0.0
    return count / spent


def _taken(batches: _Batches, step_ms: float, seconds: float) -> Taken:
    import torch

    from feedrate.loader import setup_of
    from feedrate.timing import Clock
    from feedrate.timing.ceilings import metrics
    from feedrate.timing.epoch_times import MIN_STEPS
    from feedrate.timing.stages import STAGES

    loader = batches.loader
    setup = setup_of(loader)
    warmup = 2 * setup.workers * setup.prefetch + 2
    clock = batches.clock = Clock(torch.device("cpu"), warmup)
    begin = time.perf_counter()
    number, samples, cpu, from_ = -1, 0, _cpu_s(), begin
    for batch in batches:
        number += 1
        if step_ms:
            time.sleep(step_ms / 1e3)
        count, info = len(batch.X), batch.info
        del batch  # as in Trainer._train; enumerate() would keep it, too
        clock.step(count, info.nbytes, info.timing)
        samples += count
        if number == warmup:
            samples, cpu, from_ = 0, _cpu_s(), time.perf_counter()
        if number >= warmup + MIN_STEPS and time.perf_counter() - from_ >= seconds:
            break
    spent_cpu = _cpu_s() - cpu
    batches.clock = None
    times = clock.epoch()
    found = metrics(times, setup)
    return Taken(
        samples_per_s=found["loader/samples_per_s"],
        mb_per_s=found["loader/mb_per_s"],
        wait_pct=found["loader/wait_pct"],
        cpu_s_per_1000=1000 * spent_cpu / samples,
        peak_rss_mb=_memory_mb(),
        ceiling_samples_per_s=found.get("loader/ceiling_samples_per_s", found["loader/samples_per_s"]),
        load_ms=found.get("loader/load_ms_p50", 0.0),
        stages_pct={stage: found[f"loader/{stage}_pct"] for stage in STAGES if f"loader/{stage}_pct" in found},
        sufficient_step_ms=_sufficient(times, setup) if times.known else 0.0,
    )


def _sufficient(times: Any, setup: Any) -> float:
    """By the model of timing/pipeline.py: with which step a batch takes FED_PCT longer than the step at most."""
    from feedrate.timing.pipeline import Plan, seconds_per_batch
    from feedrate.timing.remedies import costs_of, with_step

    costs, plan = costs_of(times, setup), Plan(setup.workers, setup.prefetch, setup.threads)
    low, high = 0.0, 100 * max(1e-6, sum(costs.load) / len(costs.load) + costs.receive)
    for _ in range(30):
        middle = (low + high) / 2
        if seconds_per_batch(with_step(costs, middle), plan, setup.cores) <= (1 + FED_PCT / 100) * middle:
            high = middle
        else:
            low = middle
    return 1e3 * high


def _cpu_s() -> float:
    import psutil

    own = psutil.Process()
    total = 0.0
    for process in [own, *own.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def _memory_mb() -> float:
    import psutil

    own = psutil.Process()
    total = own.memory_info().rss / _MB
    for process in own.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().uss / _MB
    return float(total)
