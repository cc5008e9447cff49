"""The simulated accelerator itself is asynchronous and unforgiving; what is tested on it would mean little else."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import accelerator

pytestmark = pytest.mark.gpu
SIM = "sim"


def test_the_host_goes_on_while_a_kernel_runs_and_waits_where_it_reads(simulated: accelerator.Simulated) -> None:
    x = torch.ones(4, device=SIM)
    simulated.sleep(0.5)
    y = x + 1
    assert not torch.accelerator.current_stream().query()
    assert y.tolist() == [2.0] * 4
    assert torch.accelerator.current_stream().query()
    assert simulated.waits() == {"copy": 1}
    torch.bincount(torch.ones(3, dtype=torch.int64, device=SIM))
    y.sum().item()
    assert simulated.waits() == {"copy": 1, "aten::bincount": 1, "aten::_local_scalar_dense": 1}


def test_events_follow_the_order_of_their_streams_and_tell_the_time(simulated: accelerator.Simulated) -> None:
    side = torch.Stream(SIM)
    begin, end = (torch.Event(SIM, enable_timing=True) for _ in range(2))
    begin.record()
    simulated.sleep(0.05)
    end.record()
    assert not end.query()
    side.wait_event(end)
    with side:
        x = torch.ones(2, device=SIM)
    after = torch.Event(SIM)
    after.record(side)
    after.synchronize()
    assert end.query()
    assert 50 <= begin.elapsed_time(end) < 1000
    del x


def test_memory_that_is_read_too_early_or_freed_too_soon_is_poison(simulated: accelerator.Simulated) -> None:
    main, side = torch.accelerator.current_stream(), torch.Stream(SIM)
    simulated.delay(copy_s=0.05)
    host = torch.ones(1000).pin_memory()
    with side:
        early = host.to(SIM, non_blocking=True)
    assert (early + 0).isnan().all()  # nothing says that it must wait for the copy
    side.synchronize()
    simulated.sleep(0.05)
    late = early + 0
    del early  # its own stream has nothing to do, so it is freed there at once
    assert late.isnan().all()
    with side:
        kept = host.to(SIM, non_blocking=True)
    main.wait_stream(side)
    simulated.sleep(0.05)
    kept.record_stream(main)
    right = kept + 0
    del kept
    assert (right == 1).all()


def test_page_locked_memory_waits_for_its_copies_and_other_memory_blocks(simulated: accelerator.Simulated) -> None:
    simulated.delay(copy_s=0.05)
    host = torch.ones(1000).pin_memory()
    assert host.is_pinned()
    copied = host.to(SIM, non_blocking=True)
    del host
    assert not simulated.waits()
    assert (copied == 1).all()
    simulated.forget()
    torch.ones(1000).to(SIM, non_blocking=True)
    assert simulated.waits() == {"copy of pageable memory": 1}


def test_a_limit_of_memory_raises_torchs_error(simulated: accelerator.Simulated) -> None:
    simulated.limit_memory(1, torch.accelerator.memory_allocated(1) + 1000)
    kept = torch.empty(200, device="sim:1")
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        torch.empty(200, device="sim:1")
    del kept
    torch.empty(200, device="sim:1")
    torch.empty(2000, device="sim:0")


def test_a_kernel_that_fails_is_told_at_each_wait_from_then_on(simulated: accelerator.Simulated) -> None:
    loss = F.nll_loss(torch.zeros(2, 3, device=SIM), torch.tensor([1, 7], device=SIM))
    for _ in range(2):
        with pytest.raises(torch.AcceleratorError, match="a kernel failed: Target 7 is out of bounds"):
            loss.item()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fused", [True, False])
def test_a_network_learns_the_same_as_on_the_cpu(
    simulated: accelerator.Simulated, dtype: torch.dtype | None, fused: bool
) -> None:
    def losses(device: str) -> list[float]:
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5)
        )
        X, y = torch.randn(16, 1, 8, 8), torch.randint(0, 5, (16,))
        net, X, y = net.to(device), X.to(device), y.to(device)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, fused=fused)
        scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
        found = []
        for _ in range(5):
            with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
                outputs = net(X)
            loss = F.cross_entropy(outputs.float(), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            found.append(loss.item())
        return found

    assert losses(SIM) == pytest.approx(losses("cpu"), rel=1e-5 if dtype is None else 0.05)


def test_a_child_process_has_it_only_where_it_is_asked_to(simulated: accelerator.Simulated) -> None:
    command = [sys.executable, "-c", "import torch; print(torch.accelerator.is_available())"]
    plain = {**os.environ, "PYTHONPATH": accelerator.child_environment()["PYTHONPATH"]}
    plain.pop(accelerator.VARIABLE, None)
    for environment, expected in ((plain, "False"), (accelerator.child_environment(), "True")):
        assert subprocess.check_output(command, env=environment, text=True).strip() == expected
