"""Every moment of a run is counted once, and only steady steps make a rate."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import accelerator
from feedrate.config import ROOT
from feedrate.loader import TRAITS
from feedrate.timing import Clock, Load
from feedrate.timing.ceilings import metrics
from feedrate.timing.epoch_times import Setup

CPU = torch.device("cpu")
SETUP = Setup(engine="process", traits=TRAITS["process"], workers=2, prefetch=2, cores=2.0)


def step(clock: Clock, wait: float, compute: float, samples: int = 8) -> None:
    time.sleep(wait)
    clock.lap("wait")
    clock.lap("transfer")
    time.sleep(compute)
    now = time.perf_counter_ns()
    load = Load(now - 2_000_000, now, 1_000_000, 0)
    clock.step(samples, nbytes=1000 * samples, timing=load)


def test_phases_add_up_to_the_time_that_passed():
    clock = Clock(CPU, warmup_steps=0)
    begin = time.perf_counter()
    clock.begin()
    for _ in range(5):
        step(clock, 0.004, 0.006)
    time.sleep(0.02)
    clock.lap("evaluation")
    time.sleep(0.01)
    clock.lap("checkpoint")
    passed = time.perf_counter() - begin
    totals = clock.totals_s()
    assert sum(totals.values()) == pytest.approx(passed, abs=0.05)
    assert totals["evaluation"] >= 0.02
    assert totals["checkpoint"] >= 0.01
    times = clock.epoch()
    assert np.array_equal(times.elapsed, times.wait + times.transfer + times.compute)


def test_a_run_that_goes_on_counts_what_was_spent_before():
    clock = Clock(CPU, warmup_steps=0)
    clock.add_totals({"wait": 1.5, "compute": 20.0})
    step(clock, 0.0, 0.001)
    totals, times = clock.totals_s(), clock.epoch()
    assert totals["wait"] == pytest.approx(1.5 + times.wait.sum() / 1e9)
    assert totals["compute"] == pytest.approx(20 + times.compute.sum() / 1e9)
    assert totals["compute"] >= 20.001
    assert times.wait.sum() < 1.5e9  # the epoch's own time has nothing of it
    assert times.compute.sum() < 20e9


def test_parts_of_a_step_add_up_and_one_that_did_not_happen_took_no_time():
    clock = Clock(CPU, warmup_steps=0)
    clock.begin()
    for number in range(4):  # as with trainer.accumulate=2
        clock.lap("wait")
        clock.timed("forward", time.sleep, 0.002)
        clock.timed("backward", time.sleep, 0.006)
        if number % 2:
            clock.timed("optimizer", time.sleep, 0.004)
        time.sleep(0.001)  # metrics
        clock.step(8, 0)
    clock.timed("optimizer", time.sleep, 0.001)  # of a window that is not full, after the last step
    times = clock.epoch()
    least = np.array([[2, 6, 0], [2, 6, 4]] * 2) * 1_000_000
    assert (times.parts >= least).all()  # other programs may make them longer
    assert (times.parts[::2, 2] == 0).all()
    assert (times.parts.sum(axis=1) + 1_000_000 <= times.compute).all()
    found = metrics(times, SETUP)
    assert found["compute/optimizer_ms"] == pytest.approx(times.parts[1:, 2].mean() / 1e6)  # the first is warm-up


def test_warm_up_and_the_first_batch_are_left_out_of_the_rates():
    clock = Clock(CPU, warmup_steps=2)
    step(clock, 0.2, 0.2)
    step(clock, 0.2, 0.2)
    for _ in range(5):
        step(clock, 0.0, 0.005)
    times = clock.epoch()
    assert times.steady.tolist() == [False, False] + [True] * 5
    found = metrics(times, SETUP)
    assert clock.first_batch_s >= 0.2
    elapsed = times.elapsed[2:].sum()
    assert found["compute/step_ms_p50"] == pytest.approx(np.median(times.compute[2:]) / 1e6)
    assert found["loader/wait_pct"] == pytest.approx(100 * times.wait[2:].sum() / elapsed)
    assert found["loader/samples_per_s"] == pytest.approx(times.samples[2:].sum() / (elapsed / 1e9))


def test_evaluation_and_checkpoint_stop_the_clock():
    clock = Clock(CPU, warmup_steps=0)
    for _ in range(3):
        step(clock, 0.0, 0.002)
    before = metrics(clock.epoch(), SETUP)["loader/samples_per_s"]
    time.sleep(0.1)
    clock.lap("evaluation")
    clock.lap("checkpoint")
    assert metrics(clock.epoch(), SETUP)["loader/samples_per_s"] == before


def test_a_later_epoch_has_no_warm_up_and_its_own_account():
    clock = Clock(CPU, warmup_steps=2)
    for _ in range(3):
        step(clock, 0, 0)
    clock.begin()
    for _ in range(4):
        step(clock, 0, 0)
    assert clock.epoch().steady.tolist() == [True] * 4


def test_what_was_computed_in_the_warm_up_is_not_shared_out_over_steady_steps():
    clock = Clock(CPU, warmup_steps=1)
    step(clock, 2.0, 0.0)
    for _ in range(10):
        clock.lap("wait")
        end = time.process_time() + 0.01
        while time.process_time() < end:
            pass
        clock.step(8, 0)
    clock.skip()
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass  # not in any step
    times = clock.epoch()
    assert times.cpu[1:].sum() / 1e9 == pytest.approx(0.1, rel=0.3)
    assert times.cpu[0] / 1e9 < 0.1


def test_skipped_time_belongs_to_no_phase():
    clock = Clock(CPU, warmup_steps=0)
    clock.begin()
    time.sleep(0.3)
    clock.skip()
    clock.lap("evaluation")
    assert clock.totals_s()["evaluation"] < 0.3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator: device events need one")
def test_device_events_tell_compute_from_idle_without_synchronising():
    device = torch.accelerator.current_accelerator()
    clock = Clock(device, warmup_steps=0)
    size = 64 if accelerator.loaded() else 2048
    X = torch.randn(size, size, device=device)
    clock.begin()
    for _ in range(20):
        time.sleep(0.005)
        clock.lap("wait")
        clock.lap("transfer")
        for _ in range(5):
            X = (X @ X).clamp(-1, 1)
        clock.step(1, 0)
    torch.accelerator.synchronize()
    times = clock.epoch()
    assert (times.compute > 0).all()
    # the host's wait counts only as far as the device stood still
    assert (times.wait[1:] <= 20_000_000).all()


def test_a_batch_of_a_new_size_is_warm_up_too():
    clock = Clock(CPU, warmup_steps=0)
    for samples in (8, 8, 5, 8, 5):
        step(clock, 0, 0, samples)
    assert clock.epoch().steady.tolist() == [False, True, False, True, True]


AGES = """
import os
import subprocess
import sys
import time
from feedrate.timing.machine import seconds_since_start

for _ in range(2):
    print(time.monotonic(), seconds_since_start(), time.monotonic())
    time.sleep(0.3)
"""


def test_the_time_since_the_start_of_a_process_is_what_its_parent_measures() -> None:
    before = time.monotonic()  # a clock that processes share
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen([sys.executable, "-c", AGES], stdout=subprocess.PIPE, text=True, env=environment) as process:
        after = time.monotonic()
        output, _ = process.communicate()
    ages = [[float(number) for number in line.split()] for line in output.splitlines()]
    for earlier, age, later in ages:
        assert earlier - after - 0.02 <= age <= later - before + 0.02
    (_, first, begin), (end, second, _) = ages
    assert end - begin >= 0.3
    assert second - first >= end - begin - 0.02
