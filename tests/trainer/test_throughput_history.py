"""The history of a run: its first epoch is kept apart, and what was trained counts also where the run fails."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from feedrate.errors import UserError
from feedrate.loader import Loader, TorchLoader
from feedrate.timing.ceilings import metrics
from feedrate.timing.epoch_times import EpochTimes
from feedrate.timing.machine import MOST_INTERVALS, FreeCores
from feedrate.tracking.journal import run_id_of
from feedrate.trainer.throughput_history import ThroughputHistory
from histories import history
from kills import ROOT, start_training
from started import until

WAITING, FED = (history(load_ms, 10, 2, cpu_share=0.0) for load_ms in (40, 10))


def history_of(*epochs: EpochTimes) -> ThroughputHistory:
    """The history of a loader with two workers after these epochs."""
    found = ThroughputHistory(Loader(list(range(64)), 8, seed=0, num_workers=2))  # type: ignore[arg-type]
    for times in epochs:
        found.begin()
        found.trained()
        found.end(times)
    return found


def test_the_first_epoch_is_left_out_where_there_is_another_one() -> None:
    for epochs, wait_pct in (((WAITING,), 50), ((WAITING, FED, FED), 0)):
        verdict = history_of(*epochs).verdict()
        assert verdict is not None
        assert verdict.figures["wait_pct"] == pytest.approx(wait_pct, abs=2)


def test_fewer_than_ten_counted_steps_are_not_judged() -> None:
    for steps, judged in ((15, False), (16, True)):  # six are warm-up
        assert (history_of(history(40, 10, 2, steps=steps)).verdict() is not None) == judged
    few = history(40, 10, 2, steps=15)
    assert history_of(few, few).verdict() is None  # the first epoch is left out
    assert history_of(few, few, few).verdict() is not None


@pytest.mark.skipif(sys.platform != "linux", reason="what others compute is known on Linux only")
def test_a_neighbour_that_comes_while_a_run_trains_is_noticed() -> None:
    usable, core = os.sched_getaffinity(0), max(os.sched_getaffinity(0))
    burn = f"import os; os.sched_setaffinity(0, [{core}])\nwhile True: pass"
    os.sched_setaffinity(0, {core})
    try:
        for _ in range(5):  # other programs may come and go at the same instants
            free = FreeCores()
            free.begin([])
            for _ in range(2):
                until(lambda free=free: free.due)
                free.measure([])
            with subprocess.Popen([sys.executable, "-c", burn]) as neighbour:
                time.sleep(0.2)  # until it computes
                for _ in range(2):
                    until(lambda free=free: free.due)
                    free.measure([])
                neighbour.kill()
            low, high = free.range() or (0.0, 0.0)
            if high - low > 0.25:
                return
    finally:
        os.sched_setaffinity(0, usable)
    if high < 0.5:
        pytest.skip("other programs compute on this core all the time")
    assert high - low > 0.25


def test_what_workers_that_are_gone_have_computed_is_not_taken_for_that_of_others() -> None:
    """Workers that begin and end with an epoch, and torch's, of which nothing is known."""
    loader = Loader(list(range(64)), 8, seed=0, num_workers=2)  # type: ignore[arg-type]
    ours = ThroughputHistory(loader)
    for _ in range(3):
        ours.begin()
        until(lambda: ours._free_cores.due)
        ours.trained()
        ours.end(FED)
    assert ours.setup(FED).free_range is None
    torchs = ThroughputHistory(TorchLoader(torch.utils.data.DataLoader(list(range(64)), 8, num_workers=2)))  # type: ignore
    torchs.begin()
    torchs.trained()
    silent = replace(FED, begin=FED.begin * 0, end=FED.end * 0)
    torchs.end(silent)
    assert torchs.setup(silent).free_cores is None
    assert "compute/free_cores" not in metrics(silent, torchs.setup(silent))


def test_time_in_which_a_worker_ends_says_nothing_of_free_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = (1, 1)
    instants = iter([(0.0, 0.0, {worker: 0.0}), (1.0, 0.6, {worker: 0.9}), (2.0, 0.7, {}), (3.0, 2.2, {})])
    monkeypatch.setattr(FreeCores, "_now", staticmethod(lambda workers: next(instants)))
    free = FreeCores()
    free.begin([])
    for _ in range(3):
        free.measure([])
    assert free.mean() == pytest.approx((0.6 + 0.9 + 1.5) / 2)
    assert free.range() == pytest.approx((1.5, 1.5))


def test_a_long_run_keeps_few_intervals_of_free_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(100_000))
    monkeypatch.setattr(FreeCores, "_now", staticmethod(lambda workers: ((s := float(next(seconds))), 2 * s, {})))
    free = FreeCores()
    free.begin([])
    for _ in range(50_000):
        free.measure([])
    assert len(free._intervals) <= MOST_INTERVALS
    assert free.mean() == pytest.approx(2)


def test_an_epoch_that_is_broken_off_counts_where_it_has_enough_steps() -> None:
    for steps, judged_on in ((15, WAITING), (60, FED)):
        found = history_of(WAITING, WAITING)
        found.begin()
        found.end_run(history(10, 10, 2, steps=steps))
        times = found.times
        assert times is not None
        assert (len(times.wait) > len(WAITING.wait)) == (judged_on is FED)
        found.end_run(FED)  # there is no epoch any more that could be
        assert len(found.times.wait) == len(times.wait)  # type: ignore[union-attr]


def test_a_failed_run_has_the_verdict_of_what_was_trained(run_train, tmp_path):
    one_by_one = ("loader.batch_size=1", "loader.shuffle=false", "model=mlp")
    with pytest.raises(UserError, match="sample-39"):
        run_train("dataset=poisoned", "+dataset.bad=sample-39", *one_by_one)
    summary = json.loads(next(tmp_path.glob("run*/summary.json")).read_text())
    assert summary["status"] == "FAILED"
    assert summary["verdict"]["figures"]["wait_pct"] > 0


@pytest.mark.slow
def test_a_run_that_is_killed_has_the_verdict_of_what_was_trained(tmp_path, digits, make_store):
    folder, store = tmp_path / "run", make_store(tmp_path)
    settings = ["loader.batch_size=8", "loader.num_workers=0", "trainer.max_epochs=1000", "dataset.limit=400"]
    settings += ["model=simulated", "model.step_ms=4"]  # or there would be hundreds of epochs to send
    process = start_training(folder, f"dataset.root={digits}", f"tracking.uri={store}", *settings)
    until(lambda: "after epoch 1" in folder.with_suffix(".out").read_text() and bool(run_id_of(folder)))
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=100) == 143
    summary, output = json.loads((folder / "summary.json").read_text()), folder.with_suffix(".out").read_text()
    assert summary["status"] == "KILLED"
    # who is killed waits for the store for some seconds only; what is left then is sent afterwards
    subprocess.run([sys.executable, str(ROOT / "src/sync.py"), str(folder)], check=True)
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{store}")
    assert client.get_run(run_id_of(folder)).info.status == "KILLED"
    run = client.get_run(run_id_of(folder))
    assert run.data.tags["feedrate.verdict"] == summary["verdict"]["kind"]
    text = f"{summary['verdict']['kind']:<13} {summary['verdict']['waited']}"
    assert f"until then:\n{text}" in output
    assert re.search(r"^run folder  \S*/run   \(resume it with trainer.resume=auto\)$", output, re.MULTILINE)
