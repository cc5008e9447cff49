"""How fast a loader and a training step go together: a model of the pipeline, fed with measured costs.

It answers what another number of workers would do before anyone tries; what to advise is verdict.py's affair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapreplace


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What one batch costs, in seconds, on a machine where nobody waits for a core.

    Attributes:
        load: making it, in its worker, batch by batch.
        step: what the loop does with it, batch by batch: everything but waiting.
        load_cpu: what of `load` is computing, on average.
        step_cpu: what all threads of the main process compute for it, on average.
        receive: what it takes the main process to take it over from a worker.
        way: what it is on its way before that, while the worker makes the next one.
    """

    load: Sequence[float]
    step: Sequence[float]
    load_cpu: float
    step_cpu: float
    receive: float
    way: float = 0.0

    def __post_init__(self) -> None:
        assert len(self.load) == len(self.step) > 0


@dataclass(frozen=True)
class Plan:
    """How batches are made.

    Attributes:
        workers: 0 for none.
        prefetch: batches that each makes ahead.
        threads: whether they are threads: a free one takes the next batch, whereas processes have theirs dealt out.
    """

    workers: int
    prefetch: int = 2
    threads: bool = False


def seconds_per_batch(costs: Costs, plan: Plan, cores: float) -> float:
    """How long a batch takes in the long run, waiting included.

    Args:
        cores: how much computing there is at a time; two that share a physical core are less than 2.
    """
    if plan.workers == 0:
        return (sum(costs.load) + sum(costs.step)) / len(costs.load)
    alone = _simulated(costs, plan)
    computing = costs.load_cpu + costs.step_cpu
    return max(alone, computing / cores)


def _simulated(costs: Costs, plan: Plan) -> float:
    """Batch after batch: when it is asked for, made, taken over and used. Batches arrive in order.

    They pass twice, and the second time counts: then what was made ahead at the start is used up, and every plan is
    measured by the same batches.
    """
    ahead = plan.workers * plan.prefetch
    issued = [0.0] * ahead  # when batch i, i + ahead, ... was asked for
    free = [0.0] * plan.workers  # when each worker will be
    now = warm = 0.0
    count = len(costs.load)
    for i, (load, step) in enumerate([*zip(costs.load, costs.step, strict=True)] * 2):
        if i == count:
            warm = now
        asked = issued[i % ahead]
        if plan.threads:
            end = max(free[0], asked) + load
            heapreplace(free, end)
        else:
            worker = i % plan.workers
            end = free[worker] = max(free[worker], asked) + load
        got = max(now, end + costs.way) + costs.receive
        issued[i % ahead] = got
        now = got + step
    return (now - warm) / count
