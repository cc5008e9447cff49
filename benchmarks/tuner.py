"""How near tune.py comes to the best setting of a grid, in a quarter of its time; beside loadtune and Optuna.

Each workload is trained with every setting of the grid, as long as a trial of the tuner. Then tune.py, Optuna and
loadtune choose, each in a quarter of the grid's time. Their choices, and the grid's best for each number of workers,
are measured again in turns, and only these figures count. To avoid picking a best setting by luck, it is chosen on one
half of the rounds and compared on the other half, and the other way round.
"""

from __future__ import annotations

import gc
import importlib
import json
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from cells import use_cpu
from figures import markdown, spread
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils.data import Dataset

from feedrate.config import TrainerConfig
from feedrate.dataset import Data, build_data
from feedrate.timing.ceilings import metrics
from feedrate.timing.noise import FLOOR
from feedrate.tuning.trial_runner import Setting, TrialRunner
from feedrate.tuning.tune import tune

HERE = Path(__file__).resolve().parent
CONF = HERE.parent / "conf"
TRIAL_S = 0.6
NEAR = 0.95  # share of the best rate that counts as near
QUARTER = 4  # the tuner's budget is the grid's time divided by it
ROUNDS = 10
AGAIN_S = 0.5  # of each setting in a round
CPU = torch.device("cpu")
GRID = [
    Setting(0),
    *(Setting(k, ahead, engine) for k in (1, 2, 3, 4) for ahead in (2, 4, 8) for engine in ("thread", "process")),
]


@dataclass(frozen=True)
class Workload:
    """What is trained.

    Attributes:
        dataset, model: nodes as in conf/.
        batch: samples per batch.
    """

    name: str
    dataset: dict[str, Any]
    model: dict[str, Any]
    batch: int = 8


class Costly(Dataset[tuple[Tensor, int]]):
    """A sample sleeps, then computes in pure Python; every `odd`-th one sleeps `odd_ms` longer."""

    thread_safe = True

    def __init__(
        self, size: int = 100_000, sleep_ms: float = 0.0, burn_ms: float = 0.0, odd: int = 0, odd_ms: float = 0.0
    ) -> None:
        self.size, self.sleep_s, self.burn_s = size, sleep_ms / 1e3, burn_ms / 1e3
        self.odd, self.odd_s = odd, odd_ms / 1e3

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        sleep_s = self.sleep_s + (self.odd_s if self.odd and index % self.odd == 0 else 0)
        if sleep_s:
            time.sleep(sleep_s)
        if self.burn_s:
            use_cpu(self.burn_s)
        return torch.zeros(1, 8, 8), index % 10


def workloads(folder: Path) -> list[Workload]:
    """The workloads of the table; their files are written below `folder`."""
    for name, side, count in (("small", 64, 4096), ("large", 224, 1024)):
        _write_files(folder / name, (3, side, side), count)
    files = {"_target_": "feedrate.dataset.TensorFiles"}
    small, large = ({**files, "root": str(folder / name)} for name in ("small", "large"))
    generated = {"_target_": "feedrate.dataset.Generated", "size": 100_000, "validation_size": 8, "image_size": 64}
    cnn = {"_target_": "feedrate.model.CNN", "channels": [8, 16], "dropout": 0.0}

    def step(ms: float) -> dict[str, Any]:
        return {"_target_": "feedrate.model.Simulated", "step_ms": ms}

    def costly(**costs: float) -> dict[str, Any]:
        return {"_target_": "tuner.Costly", **costs}

    return [
        Workload("12 KB files, batch 256, step 4 ms", small, step(4), 256),
        Workload("150 KB files, step 5 ms", large, step(5), 64),
        Workload("12 KB files, CNN that trains on the CPU", small, cnn, 64),
        Workload("generated, 4 ms of computing a sample, step 10 ms", generated, step(10)),
        Workload("waiting 4 ms a sample, step 12 ms", costly(sleep_ms=4), step(12)),
        Workload("Python 1 ms a sample, step 24 ms", costly(burn_ms=1), step(24)),
        Workload("waiting 1 ms and Python 0.5 ms a sample, step 6 ms", costly(sleep_ms=1, burn_ms=0.5), step(6)),
        Workload("waiting 1 ms, each 40th sample 60 ms, step 12 ms", costly(sleep_ms=1, odd=40, odd_ms=60), step(12)),
    ]


def run() -> str:
    logging.getLogger("feedrate").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "This DataLoader will create")  # four workers on two cores are intended
    loadtune, missing = _loadtune()
    with tempfile.TemporaryDirectory() as name:
        return table([measured(work, loadtune) for work in workloads(Path(name))], missing)


@dataclass
class Found:
    """Results of a workload.

    Attributes:
        grid_s, tune_s: seconds that the grid and tune.py took.
        chosen: setting by tuner.
        rates: samples/s of the repeats, by setting.
    """

    name: str
    grid_s: float
    tune_s: float
    chosen: dict[str, Setting]
    rates: dict[Setting, list[float]] = field(default_factory=dict)

    @property
    def best(self) -> Setting:
        """The best setting of the grid, by the final measurements."""
        return self._best(slice(None))

    def _best(self, rounds: slice) -> Setting:
        rates = {setting: all_[rounds] for setting, all_ in self.rates.items()}
        of_round = [max(each) for each in zip(*rates.values(), strict=True)]
        shares = {s: median(r / most for r, most in zip(rates[s], of_round, strict=True)) for s in rates if s in GRID}
        return max(shares, key=lambda setting: shares[setting])

    def share(self, setting: Setting) -> float:
        """A setting's share of the best rate: median over the rounds, since the machine's speed drifts."""
        halves, shares = (slice(0, None, 2), slice(1, None, 2)), []
        for named, compared in (halves, halves[::-1]):
            best = self.rates[self._best(named)]
            shares += [one / top for one, top in zip(self.rates[setting][compared], best[compared], strict=True)]
        return median(shares)

    @property
    def fewest(self) -> int:
        """Workers of the cheapest setting of the grid within 3 % of the best."""
        return min(s.num_workers for s in self.rates if s in GRID and (self.share(s) >= 1 - FLOOR or s == self.best))


def measured(work: Workload, loadtune: Any) -> Found:
    """Measures the grid, lets each tuner choose, and measures the choices again."""
    runner, data = _runner(work)
    runner.run(Setting(0), 0.3)  # so that one-time costs do not count
    begin = time.perf_counter()
    grid = {setting: _rate(runner, setting, TRIAL_S) for setting in GRID}
    grid_s = time.perf_counter() - begin
    begin = time.perf_counter()
    tuned = tune(runner, grid_s / QUARTER, TRIAL_S)
    tune_s = time.perf_counter() - begin
    chosen = {"tune.py": tuned.best.setting, "Optuna": _optuna(runner, grid_s / QUARTER)}
    if loadtune is not None:
        chosen["loadtune"] = _choose_with_loadtune(loadtune, work, data, grid[Setting(0)], grid_s / QUARTER)
    found = Found(work.name, grid_s, tune_s, chosen)
    of_each = [max((s for s in GRID if s.num_workers == k), key=lambda s: grid[s]) for k in range(5)]
    again = dict.fromkeys([*of_each, *chosen.values()])
    for _ in range(ROUNDS):
        for setting in again:
            found.rates.setdefault(setting, []).append(_rate(runner, setting, AGAIN_S))
    shares = ", ".join(f"{tuner} {found.share(setting):.2f} ({setting})" for tuner, setting in chosen.items())
    print(f"{work.name}: {shares}; best {found.best}, {tune_s:.1f} of {grid_s:.1f} s", flush=True)
    return found


def _runner(work: Workload) -> tuple[TrialRunner, Data]:
    loader = _conf("loader/feedrate")
    data = build_data(work.dataset, 0)
    config = TrainerConfig(**{**_conf("trainer/default"), "device": "cpu"})
    return TrialRunner(
        config, data, {**loader, "batch_size": work.batch}, work.model, _conf("optimizer/adamw"), 0, CPU
    ), data


def _conf(name: str) -> dict[str, Any]:
    found: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    return dict(found)


def _rate(runner: TrialRunner, setting: Setting, seconds: float) -> float:
    times, setup = runner.run(setting, seconds)
    return metrics(times, setup)["loader/samples_per_s"]


def _optuna(runner: TrialRunner, seconds: float) -> Setting:
    """Optuna's choice from the grid: its default sampler, with trials as long as the tuner's."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))

    def setting(trial: Any) -> Setting:
        workers = trial.suggest_int("num_workers", 0, 4)
        if not workers:
            return Setting(0)
        ahead = trial.suggest_categorical("prefetch_factor", [2, 4, 8])
        return Setting(workers, ahead, trial.suggest_categorical("engine", ["thread", "process"]))

    study.optimize(lambda trial: _rate(runner, setting(trial), TRIAL_S), timeout=seconds)
    return setting(study.best_trial)


# ---------------------------------------------------------------------------------------------------------
# loadtune
# ---------------------------------------------------------------------------------------------------------


def _loadtune() -> tuple[Any, str]:
    """The package, from this environment or that of the peers; None and the reason if it is not installed."""
    sys.path += [str(path) for path in HERE.glob(".venv/lib/python*/site-packages")]  # after our own packages
    try:
        return importlib.import_module("loadtune"), ""
    except ImportError as error:
        return None, f"loadtune was not measured: {error}; benchmarks/requirements.txt names it."


def _choose_with_loadtune(loadtune: Any, work: Workload, data: Data, inline_rate: float, seconds: float) -> Setting:
    """loadtune's choice: it times steps without workers, then six of its proposals, with torch's DataLoader.

    Its choice is used with `engine=auto`, as loadtune does not choose engines.
    """
    runner, _ = _runner(work)
    trials, warmup = 6, 10
    steps = max(10, int(seconds / (trials + 1) * inline_rate / work.batch) - warmup)

    def train(model: Any, optimizer: Any, batch: Any, device: torch.device) -> Tensor:
        X, y = batch
        return runner.step(X, y)

    load = loadtune.Workload(
        name=work.name,
        make_dataset=lambda: data.partition["train"],
        make_model=lambda: torch.nn.Linear(1, 1),  # not used: `train` trains the runner's model
        train_step=train,
        make_optimizer=lambda model: torch.optim.SGD(model.parameters(), 0.0),
        default_batch_size=work.batch,
    )
    threads = torch.get_num_threads()
    result = loadtune.tune(load, steps=steps, warmup=warmup, max_trials=trials, fast=True, verbose=False)
    torch.set_num_threads(threads)  # loadtune changes it
    gc.collect()  # ends its workers
    best = result.best
    if best is None or best.throughput <= result.baseline.throughput or not best.knobs.num_workers:
        return Setting(0)
    return Setting(best.knobs.num_workers, best.knobs.prefetch_factor or 2, "auto")


# ---------------------------------------------------------------------------------------------------------
# tables and files
# ---------------------------------------------------------------------------------------------------------


def table(found: Sequence[Found], missing: str) -> str:
    """A summary and a Markdown table.

    Args:
        missing: a sentence on a tuner that was not measured, or an empty text.
    """
    head = [
        "workload", "best of the grid", "samples/s", "tune.py", "share of the best", "workers, fewest within 3 %",
        "s, of the grid", "Optuna", "loadtune",
    ]  # fmt: skip
    return f"{_summary(found)} {missing}\n\n{markdown(head, [_row(one) for one in found])}"


def _row(found: Found) -> list[str]:
    chosen = found.chosen["tune.py"]
    others = [
        f"{found.share(setting):.2f} ({setting})" if (setting := found.chosen.get(tuner)) else "not measured"
        for tuner in ("Optuna", "loadtune")
    ]
    fewest = f"{chosen.num_workers} of {found.fewest}"
    seconds = f"{found.tune_s:.1f} of {found.grid_s:.1f}"
    return [
        found.name, str(found.best), spread(found.rates[found.best], 0), str(chosen), f"{found.share(chosen):.2f}",
        fewest, seconds, *others,
    ]  # fmt: skip


def _summary(found: Sequence[Found]) -> str:
    near = {tuner: sum(f.share(f.chosen[tuner]) >= NEAR for f in found) for tuner in found[0].chosen}
    few = sum(f.chosen["tune.py"].num_workers <= f.fewest for f in found)
    quick = sum(f.tune_s <= f.grid_s / QUARTER for f in found)
    others = ", ".join(f"{tuner} in {count}" for tuner, count in near.items() if tuner != "tune.py")
    return (
        f"{len(found)} workloads, a grid of {len(GRID)} settings, trials of {TRIAL_S:g} s. tune.py: at least "
        f"{NEAR:.0%} of the best in {near['tune.py']}, no more workers than the fewest within 3 % in {few}, at most a "
        f"quarter of the grid's time in {quick}. At least {NEAR:.0%} of the best in as much time: {others}."
    )


def _write_files(folder: Path, shape: tuple[int, ...], count: int) -> None:
    folder.mkdir(parents=True)
    names = [f"{i:06d}" for i in range(count)]
    for name in names:
        torch.save(torch.randint(0, 256, shape, dtype=torch.uint8), folder / f"{name}.pt")
    (folder / "partition.json").write_text(json.dumps({"train": names[8:], "validation": names[:8]}))
    (folder / "labels.json").write_text(json.dumps({name: int(name) % 10 for name in names}))
