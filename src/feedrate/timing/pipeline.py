"""A model of loader and training step: how long a batch takes with a given number of workers, from measured costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapreplace


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What one batch costs, in seconds, where every thread has a core."""

    load: Sequence[float]  # loading in a worker, batch by batch
    step: Sequence[float]  # everything the training loop does with it except waiting, batch by batch
    load_cpu: float  # mean CPU time of `load`
    step_cpu: float  # mean CPU time of the main process, all threads
    receive: float  # time the main process takes to receive it from a worker


def seconds_per_batch(costs: Costs, workers: int, cores: float, prefetch: int = 2, threads: bool = False) -> float:
    """Mean time of a batch in a long run, waiting included.

    Args:
        workers: 0 for loading in the main thread.
        cores: free cores; two that share a physical core are less than 2.
        prefetch: batches prefetched by each worker.
        threads: a free thread takes the next batch; processes take turns.
    """
    if workers == 0:
        return (sum(costs.load) + sum(costs.step)) / len(costs.load)
    return max(_simulated(costs, workers, prefetch, threads), (costs.load_cpu + costs.step_cpu) / cores)


def _simulated(costs: Costs, workers: int, prefetch: int, threads: bool) -> float:
    """Simulates the batches twice, and times the second round, as the first begins with prefetched batches."""
    ahead = workers * prefetch
    issued = [0.0] * ahead  # when batch i, i + ahead, ... was requested
    free = [0.0] * workers  # when each worker is free
    now = warm = 0.0
    count = len(costs.load)
    for i, (load, step) in enumerate([*zip(costs.load, costs.step, strict=True)] * 2):
        if i == count:
            warm = now
        requested = issued[i % ahead]
        if threads:
            end = max(free[0], requested) + load
            heapreplace(free, end)
        else:
            end = free[i % workers] = max(free[i % workers], requested) + load
        received = issued[i % ahead] = max(now, end) + costs.receive
        now = received + step
    return (now - warm) / count
