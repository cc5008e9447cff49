"""Batches reach the device unaltered, with their receipts, and the clock knows what was waiting and what was transfer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from feedrate.errors import SampleError, UserError
from feedrate.loader import Batch, Loader, ToDevice
from feedrate.timing import Clock
from loader.datasets import Faulty, Formed, Numbers
from loader.test_loader import same

CPU = torch.device("cpu")

# ---------------------------------------------------------------------------------------------------------
# on the CPU
# ---------------------------------------------------------------------------------------------------------


def test_on_the_cpu_batches_pass_with_their_receipts_and_are_not_copied() -> None:
    loader = Loader(Numbers(), 5, shuffle=True, seed=0)
    seen: list[Batch] = []
    for batch in ToDevice(loader, CPU, check=seen.append):
        assert batch.receipt is loader.delivered
        assert loader.IDs(batch.receipt) == [str(i) for i in batch.y.tolist()]
        assert batch.X is seen[-1].X  # the very tensor that was checked
        assert batch.nbytes == batch.X.nbytes + batch.y.nbytes
    expected = list(Loader(Numbers(), 5, shuffle=True, seed=0))
    assert same([[batch.X, batch.y] for batch in seen], expected)


def test_a_loader_without_receipts_is_served_too() -> None:
    for loader in (DataLoader(Numbers(), 5), Loader(Numbers(), 5)):
        batches = list(ToDevice(loader, CPU))
        assert len(batches) == 8
        assert all(batch.receipt is None for batch in batches)


def test_the_clock_is_told_of_waiting_transfer_and_nothing_else() -> None:
    clock = Clock(CPU, warmup_steps=0)
    count = 0
    for batch in ToDevice(Loader(Numbers(), 5, seed=0), CPU, clock):
        clock.lap("compute")
        clock.step(len(batch.X), batch.nbytes)
        count += 1
    times = clock.epoch()
    assert count == len(times.wait) == 8
    assert (times.wait > 0).all()
    assert (times.transfer > 0).all()
    assert times.samples.sum() == 37
    # also waiting for the end of the epoch is waiting, though it belongs to no step
    assert clock.totals_s()["wait"] * 1e9 > times.wait.sum()


def test_what_the_check_finds_stops_the_pass() -> None:
    def check(batch: Batch) -> None:
        if 11 in batch.y:
            raise SampleError("not this one")

    passed = []
    with pytest.raises(SampleError, match="not this one"):
        passed.extend(ToDevice(Loader(Numbers(), 5, seed=0), CPU, check=check))
    assert len(passed) == 2


def test_an_error_in_a_sample_comes_through() -> None:
    with pytest.raises(SampleError, match="not a picture"):
        list(ToDevice(Loader(Faulty("value"), 5, seed=0), CPU))


@pytest.mark.parametrize(
    ("form", "told"),
    [("dict", "a batch is a dict;"), ("tensor", "a batch is a Tensor;"), ("tuple", "a batch is a list of Tensor,")],
)
def test_a_batch_that_is_no_pair_of_tensors_is_an_error_with_the_remedy(form: str, told: str) -> None:
    with pytest.raises(UserError, match=rf"{told}.*training needs the pair \(X, y\) of tensors"):
        list(ToDevice(Loader(Formed(form), 3, seed=0), CPU))


def test_a_batch_of_none_is_an_error_and_not_the_end_of_the_epoch() -> None:
    with pytest.raises(UserError, match="a batch is a NoneType"):
        list(ToDevice(Loader(Numbers(), 3, seed=0, collate_fn=lambda samples: None), CPU))


# ---------------------------------------------------------------------------------------------------------
# on an accelerator
# ---------------------------------------------------------------------------------------------------------

needs_accelerator = pytest.mark.skipif(
    not torch.accelerator.is_available(), reason="no accelerator: torch.accelerator.is_available() is false"
)


def large(batches: int, pinned: bool) -> Iterator[list[Tensor]]:
    """Batches of 128 MB, so that a copy takes longer than the host; each is given away."""
    for number in range(batches):
        X = torch.full((32, 1 << 20), float(number))
        y = torch.full((32,), number)
        yield [X.pin_memory(), y.pin_memory()] if pinned else [X, y]


@pytest.mark.gpu
@needs_accelerator
@pytest.mark.parametrize("pinned", [True, False])
def test_on_an_accelerator_each_step_sees_its_own_batch_though_the_copy_is_slow(pinned: bool) -> None:
    device = torch.accelerator.current_accelerator()
    assert device is not None
    sums, numbers = [], []
    for batch in ToDevice(large(12, pinned), device):
        assert batch.X.device.type == batch.y.device.type == device.type
        sums.append(batch.X.double().mean())
        numbers.append(batch.y.sum())
        # takes whatever memory the allocator believes to be free, and overwrites it behind this step
        torch.empty_like(batch.X).fill_(-1)
        del batch
    assert torch.stack(sums).tolist() == [float(i) for i in range(12)]
    assert torch.stack(numbers).tolist() == [32 * i for i in range(12)]


@pytest.mark.gpu
@needs_accelerator
@pytest.mark.parametrize("pinned", [True, False])
def test_on_an_accelerator_a_host_buffer_may_be_reused_once_its_batch_is_two_batches_old(pinned: bool) -> None:
    device = torch.accelerator.current_accelerator()
    assert device is not None
    buffers = [torch.empty(32, 1 << 20) for _ in range(3)]
    if pinned:
        buffers = [buffer.pin_memory() for buffer in buffers]

    def reused() -> Iterator[list[Tensor]]:
        for number in range(12):
            yield [buffers[number % 3].fill_(number), torch.full((32,), number)]

    means = [batch.X.double().mean() for batch in ToDevice(reused(), device)]
    assert torch.stack(means).tolist() == [float(i) for i in range(12)]


@pytest.mark.gpu
@needs_accelerator
def test_on_an_accelerator_leaving_early_and_errors_leave_nothing_behind() -> None:
    device = torch.accelerator.current_accelerator()
    assert device is not None
    for batch in ToDevice(large(4, True), device):
        first = batch.X.mean()
        break
    with pytest.raises(SampleError):
        list(ToDevice(Loader(Faulty("value"), 4, seed=0), device))
    assert float(first) == 0
    assert len(list(ToDevice(Loader(Numbers(), 5, seed=0, pin_memory=True), device))) == 8


@pytest.mark.gpu
@needs_accelerator
def test_on_an_accelerator_receipts_belong_to_their_batches_and_the_clock_reads_events() -> None:
    device = torch.accelerator.current_accelerator()
    assert device is not None
    loader: Any = Loader(Numbers(), 5, shuffle=True, seed=0, pin_memory=device.type != "mps")
    clock = Clock(device, warmup_steps=0)
    weight = torch.rand(512, 512, device=device)
    for batch in ToDevice(loader, device, clock):
        assert loader.IDs(batch.receipt) == [str(i) for i in batch.y.tolist()]
        for _ in range(20):
            weight = weight @ weight / 512
        clock.lap("compute")
        clock.step(len(batch.X), batch.nbytes)
    torch.accelerator.synchronize()
    times = clock.epoch()
    assert len(times.compute) == 8
    assert (times.compute > 0).all()
    assert (times.wait >= 0).all()
    assert (times.wait <= times.elapsed).all()
