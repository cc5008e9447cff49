"""tune.py finds the cheapest setting that is as good as the best, with few trials, and writes it as an option."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from at_once import at_once
from feedrate.errors import SampleError, UserError
from feedrate.timing import EpochTimes
from feedrate.timing.ceilings import metrics
from feedrate.timing.epoch_times import Setup
from feedrate.tuning.trial_runner import Setting
from feedrate.tuning.tune import tune
from histories import history, setup

ROOT = Path(__file__).resolve().parents[2]
GRID = 1 + 3 * 32  # settings without workers, and with 1 to 32 workers and three lengths of the queue


class Workload:
    """Stands in for a TrialRunner: loads that wait, and steps of a given length, by any number of processes."""

    may_be_threads = False

    def __init__(self, load_ms: float, step_ms: float, receive_ms: float = 0.3, uneven: float = 0.0) -> None:
        self.load_ms, self.step_ms, self.receive_ms, self.uneven = load_ms, step_ms, receive_ms, uneven
        self.tried: list[Setting] = []

    def run(self, setting: Setting, seconds: float, until: float = float("inf")) -> tuple[EpochTimes, Setup]:
        self.tried.append(setting)
        engine = "process" if setting.num_workers else "inline"
        loads = [self.load_ms * (1 - self.uneven + (10 * self.uneven if n % 10 == 0 else 0)) for n in range(200)]
        receive = self.receive_ms if setting.num_workers else 0.0
        times = history(loads, self.step_ms, setting.num_workers, steps=200, receive_ms=receive, cpu_share=0.0)
        return times, setup(engine, setting.num_workers, 2.0)

    def rate(self, setting: Setting) -> float:
        times, how = self.run(setting, 0)
        return metrics(times, how)["loader/samples_per_s"]


@pytest.mark.parametrize(
    ("load_ms", "step_ms"), [(40, 10), (40, 3), (4, 10), (100, 10), (9.5, 10), (0.1, 10), (12, 10), (30, 1.5)]
)
def test_it_comes_near_the_best_of_the_grid_with_the_fewest_workers_and_few_trials(
    load_ms: float, step_ms: float
) -> None:
    work = Workload(load_ms, step_ms)
    found = tune(work, budget_s=1e6, trial_s=1.0)  # type: ignore[arg-type]
    trials = len(work.tried)
    rates = {k: work.rate(Setting(k, 2, "process")) for k in range(33)}
    best = max(rates.values())
    fewest = min(k for k, rate in rates.items() if rate >= 0.97 * best)
    assert found.best.samples_per_s >= 0.95 * best
    assert found.best.setting.num_workers == fewest
    assert trials <= GRID / 4


def test_where_a_step_hardly_waits_without_workers_nothing_is_measured_again() -> None:
    work = Workload(0.1, 10)
    assert tune(work, budget_s=1e6, trial_s=1.0).best.setting == Setting(0)  # type: ignore[arg-type]
    assert work.tried.count(Setting(0)) == 1


class Noisy(Workload):
    """Steps that are longer or shorter in every run, since others compute now and then."""

    def __init__(self, load_ms: float, step_ms: float, pace: Callable[[Setting, int], float]) -> None:
        super().__init__(load_ms, step_ms)
        self.pace, self.quiet_ms = pace, step_ms

    def run(self, setting: Setting, seconds: float, until: float = float("inf")) -> tuple[EpochTimes, Setup]:
        self.step_ms = self.quiet_ms * self.pace(setting, self.tried.count(setting))
        return super().run(setting, seconds, until)


def test_where_a_step_hardly_waits_without_workers_a_faster_trial_with_one_is_noise() -> None:
    work = Noisy(0.6, 127, lambda setting, times: 1.0 if setting.num_workers == 0 else 63 / 74)
    found = tune(work, budget_s=1e6, trial_s=1.0)  # type: ignore[arg-type]
    assert max(found.tried, key=lambda trial: trial.samples_per_s).setting.num_workers == 1  # 74 to 63 samples/s
    assert found.best.setting == Setting(0)
    assert found.unsteady.startswith("the same step took 108 ms in one trial and 127 ms in another")


def test_of_settings_that_differ_by_no_more_than_the_noise_the_cheapest_is_taken() -> None:
    right = 0
    for draw in range(10):
        random = np.random.default_rng(draw)
        work = Noisy(9.0, 10, lambda setting, times, random=random: random.uniform(0.88, 1.12))  # type: ignore[misc]
        best = tune(work, budget_s=1e6, trial_s=1.0).best.setting  # type: ignore[arg-type]
        right += (best.num_workers, best.prefetch_factor) == (1, 2)  # one worker feeds the step, as any number would
    assert right >= 8


def test_a_steady_machine_is_not_called_unsteady() -> None:
    assert tune(Workload(40, 10), budget_s=1e6, trial_s=1.0).unsteady == ""  # type: ignore[arg-type]


def test_the_budget_ends_the_trials() -> None:
    work = Workload(100, 2)
    found = tune(work, budget_s=1e-6, trial_s=1.0)  # type: ignore[arg-type]
    assert len(found.tried) == 2  # what the prediction rests on is measured in any case
    assert found.best.samples_per_s >= 0.97 * max(trial.samples_per_s for trial in found.tried)


def test_a_trial_that_would_outlast_the_budget_is_not_begun() -> None:
    work = Workload(load_ms=4000, step_ms=10)  # a few steps of it take seconds
    found = tune(work, budget_s=4.0, trial_s=0.1)  # type: ignore[arg-type]
    assert len(work.tried) == 2
    assert len(tune(Workload(4000, 10), budget_s=1e6, trial_s=0.1).tried) > 2  # type: ignore[arg-type]
    assert found.best.setting == Setting(0)


def test_a_setting_that_there_is_no_room_for_is_named_and_not_taken() -> None:
    class Cramped(Workload):
        def run(self, setting: Setting, seconds: float, until: float = float("inf")) -> tuple[EpochTimes, Setup]:
            if setting.num_workers > 2:
                self.tried.append(setting)
                raise UserError(f"loader.num_workers={setting.num_workers} needs about 9 GB\nSet fewer")
            return super().run(setting, seconds)

    work = Cramped(load_ms=40, step_ms=10)
    found = tune(work, budget_s=1e6, trial_s=1.0)  # type: ignore[arg-type]
    assert found.best.setting.num_workers == 2
    refused = [trial for trial in found.tried if trial.refused]
    assert refused
    assert all(trial.refused == f"loader.num_workers={trial.setting.num_workers} needs about 9 GB" for trial in refused)
    assert all(trial.samples_per_s == 0 for trial in refused)
    tried = [setting.num_workers for setting in work.tried if setting.num_workers > 2]
    assert tried == sorted(tried, reverse=True)  # settings above a refused one are not tried


def test_where_there_is_no_room_for_even_one_worker_the_answer_is_none() -> None:
    class Full(Workload):
        def run(self, setting: Setting, seconds: float, until: float = float("inf")) -> tuple[EpochTimes, Setup]:
            if setting.num_workers:
                self.tried.append(setting)
                raise UserError("loader.num_workers=1 needs 90 MB of shared memory, and /dev/shm has 64 MB free\nSet 0")
            return super().run(setting, seconds)

    work = Full(load_ms=40, step_ms=10)
    found = tune(work, budget_s=1e6, trial_s=1.0)  # type: ignore[arg-type]
    assert found.best.setting == Setting(0)
    assert found.best.samples_per_s == pytest.approx(8 / 0.050, rel=0.01)
    (refused,) = (trial for trial in found.tried if trial.refused)
    assert refused.refused == "loader.num_workers=1 needs 90 MB of shared memory, and /dev/shm has 64 MB free"
    assert sum(setting.num_workers > 0 for setting in work.tried) == 1


def test_what_the_step_can_take_is_counted_in_the_samples_that_batches_have() -> None:
    class Small(Workload):
        """Each second batch is the last of its epoch, with 2 samples instead of 8."""

        def run(self, setting: Setting, seconds: float, until: float = float("inf")) -> tuple[EpochTimes, Setup]:
            times, how = super().run(setting, seconds)
            return replace(times, samples=np.where(np.arange(len(times.samples)) % 2, 8, 2)), how

    found = tune(Small(load_ms=0.1, step_ms=10), budget_s=1e6, trial_s=1.0)  # type: ignore[arg-type]
    assert found.step_samples_per_s == pytest.approx(5 / 0.010, rel=0.02)
    assert found.best.predicted == pytest.approx(found.best.samples_per_s, rel=0.02)


def test_threads_that_cannot_load_the_dataset_are_given_up() -> None:
    class Drawing(Workload):
        may_be_threads = True

        def run(self, setting: Setting, seconds: float, until: float = float("inf")) -> tuple[EpochTimes, Setup]:
            times = super().run(setting, seconds)
            if setting.engine == "thread":
                raise UserError("loader.engine=thread: it draws from a global random generator")
            return times

    work = Drawing(load_ms=100, step_ms=10)
    found = tune(work, budget_s=1e6, trial_s=1.0)  # type: ignore[arg-type]
    assert found.best.setting.engine == "process"
    assert found.best.samples_per_s >= 0.95 * work.rate(Setting(11, 2, "process"))
    assert sum(setting.engine == "thread" for setting in work.tried) < 12


def test_a_sample_that_fails_ends_the_search() -> None:
    class Broken(Workload):
        def run(self, setting: Setting, seconds: float, until: float = float("inf")) -> tuple[EpochTimes, Setup]:
            if setting.num_workers > 1:
                raise SampleError("sample 'a-1': damaged", ID="a-1")
            return super().run(setting, seconds)

    with pytest.raises(SampleError, match="a-1"):
        tune(Broken(load_ms=40, step_ms=10), budget_s=1e6, trial_s=1.0)  # type: ignore[arg-type]


MISTAKES = {
    "loader=torch": "tunes Feedrate's loader",
    "tune.output=FOLDER": "tune.output=FOLDER: cannot be written (Is a directory); name another file",
    "tune.output=/dev/null/tuned.yaml": "tune.output=/dev/null/tuned.yaml: cannot be written (Not a directory); name",
    "tune.output=FOLDER/own.yaml": "tune.output=FOLDER/own.yaml: that file was not written by tune.py",
    "tune.output=": "tune.output= has no value",
    "tune.budget_s=0": "tune.budget_s=0: must be greater than 0",
    "experiment=generated_feed": "experiment: there is no experiment",
    "scheduler=cosine": "scheduler: there is no scheduler",
    "tune.bugdet_s=3": "did you mean budget_s?",
}


@pytest.mark.slow
def test_a_mistake_is_answered_before_anything_is_tried(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "own.yaml").write_text("num_workers: 3\n")

    def answer(mistake: str) -> subprocess.CompletedProcess[str]:
        chosen = [f"tune.output={tmp_path}/tuned.yaml"] * ("output" not in mistake)
        command = [sys.executable, "src/tune.py", *chosen, mistake.replace("FOLDER", f"{tmp_path}/folder")]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)

    before = set(ROOT.glob("outputs/tune*"))
    for mistake, done in at_once({mistake: partial(answer, mistake) for mistake in MISTAKES}).items():
        assert (done.returncode, done.stdout) == (1, ""), mistake
        assert MISTAKES[mistake].replace("FOLDER", f"{tmp_path}/folder") in done.stderr
        assert len(done.stderr.splitlines()) <= 3
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (tmp_path / "folder" / "own.yaml").read_text() == "num_workers: 3\n"
    assert set(ROOT.glob("outputs/tune*")) == before
