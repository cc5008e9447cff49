"""What only a device that counts and delays can show: waits of the host, rates, memory, which device is used."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

import accelerator
from feedrate.cli.launch import CONF, describe
from feedrate.config import TrainerConfig
from feedrate.dataset import Data, build_data
from feedrate.errors import UserError
from feedrate.loader import TRAITS, Loader, ToDevice, build_loaders, close_loaders, start_loaders
from feedrate.loader.batch import BatchInfo
from feedrate.loader.order import BatchRequest
from feedrate.system.device import in_use
from feedrate.timing import Clock
from feedrate.timing.ahead import record
from feedrate.timing.ceilings import metrics as metrics_of
from feedrate.timing.epoch_times import Setup
from feedrate.trainer.assemble import build_optimizer
from feedrate.trainer.device import choose_device, choose_precision
from feedrate.trainer.evaluate import outputs_of
from feedrate.trainer.forward import Forward
from feedrate.trainer.guard import LossGuard
from feedrate.trainer.loop import Trainer
from feedrate.tuning.trial_runner import TrialRunner
from on_device import Wide

pytestmark = pytest.mark.gpu
SIM = torch.device("privateuseone")  # which is called sim where it is loaded
ORDINARY = {"event.synchronize"}  # the wait for the end of a step long ago, and of a copy that lies before a step


# ---------------------------------------------------------------------------------------------------------
# 1: an ordinary step waits for nothing
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize(
    "more",
    [
        ("trainer.precision=32",),
        ("trainer.precision=fp16", "trainer.clip_norm=1", "trainer.accumulate=2"),
        ("trainer.precision=fp16", "optimizer=sgd"),
    ],
)
def test_the_host_waits_for_the_device_in_no_ordinary_step(simulated, run_train, monkeypatch, task, more):
    waited = []
    original = Clock.step

    def step(self, *args):
        original(self, *args)
        if self._events is not None and len(self._steps) > 2:  # the first ones are those of new shapes
            waited.append(set(simulated.waits()) - ORDINARY)
        simulated.forget()

    validated = []
    evaluate = Trainer.evaluate

    def evaluated(self, partition):
        simulated.forget()
        meter = evaluate(self, partition)
        validated.append(simulated.waits())
        return meter

    monkeypatch.setattr(Clock, "step", step)
    monkeypatch.setattr(Trainer, "evaluate", evaluated)
    dataset = "wide" if task == "classification" else "wide_numbers"
    run_train(f"dataset={dataset}", "model=mlp", "loader.batch_size=16", "trainer.max_epochs=1",
              "trainer.log_every=1000", *more)  # fmt: skip
    assert len(waited) > 10
    assert not set().union(*waited)
    # 16 batches: what is read once, at the end, is whether the losses are finite
    assert sum(count for name, count in validated[0].items() if name not in ORDINARY) <= 3


# ---------------------------------------------------------------------------------------------------------
# 2: the host is at most two steps ahead, and rates are the device's
# ---------------------------------------------------------------------------------------------------------


def pinned_batches(count: int):
    for number in range(count):
        yield [torch.full((8, 4), float(number)).pin_memory(), torch.full((8,), number).pin_memory()]


@pytest.mark.parametrize("clocked", [True, False])
def test_the_host_issues_at_most_two_steps_more_than_the_device_has_finished(simulated, clocked):
    clock = Clock(SIM, 0) if clocked else None
    if clock is not None:
        clock.begin()
    ends: list[torch.Event] = []
    most = 0
    for batch in ToDevice(pinned_batches(12), SIM, clock):
        most = max(most, sum(not end.query() for end in ends))
        simulated.sleep(0.02)
        ends.append(torch.Event(SIM))
        ends[-1].record()
        if clock is not None:
            clock.step(len(batch.X), batch.info.nbytes)
    assert most == 2


@pytest.mark.parametrize("load_s", [0.0, 0.03])
def test_rates_waits_and_ceilings_are_those_of_the_device(simulated, load_s):
    """Steps of 20 ms on the device; a batch is there at once, or 30 ms after it is requested."""

    def batches():
        for batch in pinned_batches(30):
            time.sleep(load_s)
            yield batch

    clock = Clock(SIM, 5)
    clock.begin()
    simulated.forget()
    for batch in ToDevice(batches(), SIM, clock):
        simulated.sleep(0.02)
        clock.step(len(batch.X), batch.info.nbytes)
    clock.skip()
    simulated.synchronize()
    times = clock.epoch()
    found = metrics_of(times, Setup(engine="inline", traits=TRAITS["inline"], workers=0, prefetch=0, cores=2.0))
    trace = simulated.trace()
    steps = trace[(trace[:, 0] == simulated.KERNEL) & (trace[:, 4] - trace[:, 3] > 15e6)][5:]
    span = steps[-1, 4] - steps[0, 3] + (steps[1, 3] - steps[0, 4])  # with the gap before the first one
    busy = (steps[:, 4] - steps[:, 3]).sum()
    assert len(steps) == 25
    assert found["loader/samples_per_s"] == pytest.approx(8 * 25 / (span / 1e9), rel=0.05)
    assert found["compute/ceiling_samples_per_s"] == pytest.approx(8 * 25 / (busy / 1e9), rel=0.05)
    assert found["loader/wait_pct"] == pytest.approx(100 * (span - busy) / span, abs=5)
    assert np.array_equal(times.elapsed, times.wait + times.transfer + times.compute)


def test_forward_backward_and_optimizer_are_timed_on_the_device(simulated):
    clock = Clock(SIM, 0)
    clock.begin()
    for number, batch in enumerate(ToDevice(pinned_batches(12), SIM, clock)):
        clock.timed("forward", simulated.sleep, 0.01)
        clock.timed("backward", simulated.sleep, 0.03)
        if number % 2:
            clock.timed("optimizer", simulated.sleep, 0.005)
        clock.step(len(batch.X), batch.info.nbytes)
    clock.skip()
    simulated.synchronize()
    parts = clock.epoch().parts / 1e6
    assert np.median(parts, axis=0)[:2] == pytest.approx([10.0, 30.0], rel=0.2)
    assert np.median(parts[1::2, 2]) == pytest.approx(5, rel=0.4)
    assert (parts[::2, 2] < 1).all()


def test_a_model_that_keeps_its_outputs_on_the_device_is_a_note(simulated, run_train, monkeypatch):
    kept, forward = [], nn.Linear.forward

    def keeping(self, X):
        kept.append(torch.ones(100_000, device=X.device))
        return forward(self, X)

    same = ("model=mlp", "trainer.max_epochs=6", "loader.batch_size=16")
    assert run_train(*same)["memory_growth"] == []
    monkeypatch.setattr(nn.Linear, "forward", keeping)
    assert run_train(*same)["memory_growth"][-1].startswith("device memory grew by ")


# ---------------------------------------------------------------------------------------------------------
# 3: a first step that is skipped
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dampening", [0.0, 0.5])
def test_a_first_step_that_overflows_leaves_no_trace_in_the_momentum(simulated, dampening):
    model = nn.Linear(2, 1, bias=False).to(SIM)
    node = {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9, "dampening": dampening}
    optimizer = build_optimizer(node, model, SIM)
    scaler = torch.amp.GradScaler("sim", init_scale=4.0)
    before = model.weight.detach().clone()
    for factor in (float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale((model.weight * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert model.weight.isfinite().all()
    assert torch.allclose(model.weight, before - 0.1)


def test_fused_sgd_with_momentum_takes_the_steps_of_the_plain_one(simulated):
    found = []
    for fused in ({}, {"fused": False}):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        node = {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}
        optimizer = build_optimizer({**node, **fused}, model.to(SIM), SIM)
        assert optimizer.param_groups[0]["fused"] is (None if not fused else False) or not fused
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.ones(2, 3, device=SIM)).square().sum().backward()
            optimizer.step()
        found.append(model.weight.detach().cpu())
    assert torch.allclose(*found)


# ---------------------------------------------------------------------------------------------------------
# 4: a checkpoint goes from device to device
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("then", "now"),
    [
        (("trainer.device=cpu",), ("trainer.device=auto", "trainer.precision=fp16")),
        (("trainer.device=auto", "trainer.precision=fp16"), ("trainer.device=cpu", "trainer.precision=32")),
        (("trainer.device=privateuseone:0",), ("trainer.device=privateuseone:1",)),
    ],
)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_run_goes_on_on_another_device(simulated, run_train, tmp_path, then, now, optimizer):
    same = ("model=mlp", "loader.batch_size=64", f"optimizer={optimizer}")
    first = run_train(*same, *then, "trainer.max_epochs=1")
    resumed = run_train(*same, *now, "trainer.max_epochs=2", f"trainer.resume={first['folder']}")
    assert resumed["epochs"] == 2
    state = torch.load(resumed["folder"] / "checkpoints" / "last.pt", weights_only=True, map_location="cpu")
    assert bool(state["optimizer"]["param_groups"][0]["fused"]) is ("trainer.device=cpu" not in now)


# ---------------------------------------------------------------------------------------------------------
# 5: another device than the first
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [(), ("loader.num_workers=1", "loader.engine=thread")])
def test_a_run_on_the_second_device_leaves_the_first_one_alone(simulated, run_train, workers):
    with simulated.unused(0):
        summary = run_train("model=mlp", "trainer.device=privateuseone:1", "trainer.precision=fp16", *workers)
        assert not simulated.used(0)
    assert simulated.used(1)
    state = torch.load(summary["folder"] / "checkpoints" / "last.pt", weights_only=True, map_location="cpu")
    assert torch.equal(state["random"]["device"], torch.sim.get_rng_state("sim:1"))


@pytest.mark.parametrize("number", [2, 127, 128, 255, 256])
def test_a_device_that_does_not_exist_is_refused_whatever_its_number(simulated, number):
    with pytest.raises(UserError, match=f"trainer.device=privateuseone:{number}: this machine has 2 sim device"):
        choose_device(f"privateuseone:{number}")
    assert choose_device("privateuseone:01") == torch.device("sim:1")


# ---------------------------------------------------------------------------------------------------------
# 6: out of memory
# ---------------------------------------------------------------------------------------------------------


def leave_memory(simulated: accelerator.Simulated, nbytes: int) -> None:
    """So many bytes more than what is in use now."""
    gc.collect()
    simulated.synchronize()
    simulated.limit_memory(0, torch.accelerator.memory_allocated(0) + nbytes)


@pytest.mark.parametrize("where", ["forward", "backward", "optimizer", "mps", "copy"])
def test_wherever_memory_runs_out_the_advice_is_the_same(simulated, run_train, where):
    limit = {"optimizer": 5 << 20, "copy": 1 << 16}.get(where, 2 << 20)
    leave_memory(simulated, limit)
    model = f"model.where={'nowhere' if where == 'copy' else where}"
    size = 512 if where == "copy" else 32
    with pytest.raises(UserError, match="the device ran out of memory; lower loader.batch_size"):
        run_train("dataset=wide", "+dataset.size=512", "model=hungry", model, f"loader.batch_size={size}",
                  "trainer.precision=32")  # fmt: skip


def test_a_copy_that_finds_no_memory_in_an_evaluation_gives_the_advice(simulated):
    data = wide_data()
    forward = Forward(nn.Linear(64, 10).to(SIM), data, SIM, choose_precision(32, SIM))
    leave_memory(simulated, 1000)
    with pytest.raises(UserError, match="the device ran out of memory; lower loader.batch_size"):
        list(outputs_of(forward, Loader(Wide("train"), 64, seed=0)))


@pytest.mark.filterwarnings("error")  # nothing that is closed then fails once more, and says so
def test_a_kernel_that_fails_ends_the_run_in_one_error_and_is_in_its_record(simulated, run_train, tmp_path):
    with pytest.raises(UserError, match=r"the device has failed: .*out of range.*\n.*trainer.device=cpu says where"):
        run_train("dataset=wide", "model=hungry", "model.where=kernel", "trainer.checkpoint_every_s=0")
    gc.collect()
    summary = json.loads((tmp_path / "run1/summary.json").read_text())
    assert (summary["status"], "the device has failed" in summary["error"]) == ("FAILED", True)


def test_a_model_that_the_devices_memory_is_too_small_for_gives_the_advice(simulated, run_train):
    leave_memory(simulated, 1000)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        run_train("dataset=wide", "model=hungry", "model.where=optimizer")
    assert describe(caught.value) == "the device ran out of memory; lower loader.batch_size, or take a smaller model"


def wide_data(size: int = 256) -> Data:
    return build_data({"_target_": "on_device.Wide", "size": size}, 0)


def test_the_largest_batch_leaves_a_tenth_of_the_memory(simulated):
    def conf(name: str) -> dict[str, Any]:
        return dict(OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml")))

    config = TrainerConfig(**{**conf("trainer/default"), "device": "auto"})
    runner = TrialRunner(
        config, wide_data(4096), conf("loader/feedrate"), conf("model/mlp"), conf("optimizer/adamw"), 0, SIM
    )
    assert runner.fits(64)  # the optimizer has its state then
    assert runner.fits(2048)
    peak = torch.accelerator.max_memory_reserved(SIM)
    for share, fits in ((1.05, False), (1.2, True)):
        simulated.limit_memory(0, int(share * peak))
        assert runner.fits(2048) is fits
    simulated.limit_memory(0, int(0.9 * peak))
    assert not runner.fits(2048)


# ---------------------------------------------------------------------------------------------------------
# 7: fused optimizers
# ---------------------------------------------------------------------------------------------------------


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, dtype=torch.complex64))


@pytest.mark.parametrize(
    ("node", "model", "fused"),
    [
        ({"_target_": "torch.optim.AdamW"}, nn.Linear(2, 1), True),
        ({"_target_": "torch.optim.AdamW", "fused": False}, nn.Linear(2, 1), False),
        ({"_target_": "on_device.NoFused"}, nn.Linear(2, 1), None),
        ({"_target_": "torch.optim.AdamW"}, Complex(), None),
        ({"_target_": "torch.optim.SGD"}, nn.Embedding(3, 2, sparse=True), None),
        (
            {"_target_": "torch.optim.Adagrad"},
            nn.Linear(2, 1),
            None,
        ),  # some devices have none, as only a step shows
    ],
)
def test_an_optimizer_is_fused_where_it_can_be_and_is_not_told_otherwise(simulated, node, model, fused):
    optimizer = build_optimizer(node, model.to(SIM), SIM)
    assert optimizer.param_groups[0]["fused"] is fused


def test_fused_can_be_set_for_the_shipped_optimizers(simulated, run_train):
    for optimizer in ("adamw", "sgd"):
        summary = run_train("model=mlp", "trainer.max_epochs=1", f"optimizer={optimizer}", "optimizer.fused=false")
        state = torch.load(summary["folder"] / "checkpoints" / "last.pt", weights_only=True, map_location="cpu")
        assert state["optimizer"]["param_groups"][0]["fused"] is False


def test_on_mps_each_loss_is_read_and_the_time_of_a_step_may_be_unknown(simulated, monkeypatch):
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(1))], fused=True)
    guard = LossGuard(optimizer, torch.device("mps"), SimpleNamespace(IDs=lambda info: []))
    with pytest.raises(UserError, match="the loss is nan at step 3"):
        guard.check(torch.tensor(float("nan")), 3, BatchInfo(BatchRequest(0, 0, 0, np.empty(0, dtype=np.int64))))

    # of events without times torch raises the error that MPS may raise
    monkeypatch.setattr("feedrate.timing.clock.record", lambda device, timed: record(device))
    clock = Clock(SIM, 0)
    clock.begin()
    for _ in range(3):
        clock.lap("wait")
        clock.lap("transfer")
        simulated.sleep(0.01)
        clock.step(1, 1)
    simulated.synchronize()
    assert (clock.epoch().elapsed >= 0).all()


# ---------------------------------------------------------------------------------------------------------
# 8: one copy stream; page-locking
# ---------------------------------------------------------------------------------------------------------


def test_all_passes_copy_on_one_stream_of_the_device(simulated):
    simulated.forget()
    for _ in range(4):
        for _ in ToDevice(pinned_batches(2), SIM):
            pass
    simulated.synchronize()
    trace = simulated.trace()
    assert len(np.unique(trace[trace[:, 0] == simulated.COPY][:, 2])) == 1


def test_workers_that_fork_are_there_before_the_device_is_used(simulated):
    settings = {"_target_": "feedrate.loader.Loader", "batch_size": 8, "shuffle": True, "num_workers": 1,
                "engine": "process", "pin_memory": "auto", "persistent_workers": True}  # fmt: skip
    with simulated.unused(0), simulated.unused(1):
        data = wide_data()
        loaders = build_loaders(settings, data, 0, SIM)
        start_loaders(loaders, ("train", "validation"))
        try:
            time.sleep(0.3)  # time enough for a thread to page-lock the first batches
            assert not in_use()
            names = {type(process).__name__ for process in loaders["validation"]._engine._started.processes}
            assert names == {"ForkProcess"}
            assert all(batch[0].is_pinned() for batch in loaders["validation"])
            assert in_use()
        finally:
            close_loaders(loaders)


CLOSED = """
import torch
from feedrate.loader import Loader
from on_device import Wide
if __name__ == "__main__":
    for at_once in (False, True):
        loader = Loader(Wide("train", 4096), 64, seed=0, num_workers=2, engine="process", pin_memory=True)
        for number, batch in enumerate(loader):
            assert batch[0].is_pinned()
            if number == 3:
                break
        loader.close(at_once)
    print("closed")
"""


def test_closing_a_loader_with_page_locked_batches_prints_nothing(simulated, tmp_path: Path) -> None:
    script = tmp_path / "closing.py"
    script.write_text(CLOSED)
    environment = accelerator.child_environment()
    environment["PYTHONPATH"] += f":{Path(__file__).resolve().parents[2] / 'src'}"
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("closed\n", "")


# ---------------------------------------------------------------------------------------------------------
# 9: the record
# ---------------------------------------------------------------------------------------------------------


def test_the_record_has_the_devices_name_and_the_peak_of_its_memory(simulated, run_train):
    summary = run_train("model=mlp", "trainer.max_epochs=1")
    assert summary["device"] == "sim (Simulated accelerator)"
    peak = summary["metrics"]["device/peak_memory_mb"]
    assert 0 < peak <= torch.accelerator.max_memory_allocated(SIM) / 1e6
