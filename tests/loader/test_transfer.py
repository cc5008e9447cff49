"""Batches reach the device unaltered, with their batch infos, and the clock tells waiting from transfer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import accelerator as simulated_accelerator
from feedrate.errors import SampleError, UserError
from feedrate.loader import Batch, Loader, ToDevice
from feedrate.system.device import has_streams
from feedrate.timing import Clock
from loader.datasets import Faulty, Formed, Numbers
from loader.test_loader import same

CPU = torch.device("cpu")

# ---------------------------------------------------------------------------------------------------------
# on the CPU
# ---------------------------------------------------------------------------------------------------------


def test_on_the_cpu_batches_pass_with_their_info_and_are_not_copied() -> None:
    loader = Loader(Numbers(), 5, shuffle=True, seed=0)
    seen: list[Batch] = []
    for batch in ToDevice(loader, CPU, check=seen.append):
        assert loader.IDs(batch.info) == [str(i) for i in batch.y.tolist()]
        assert batch.X is seen[-1].X  # the very tensor that was checked
        assert batch.info.nbytes == batch.X.nbytes + batch.y.nbytes
    expected = list(Loader(Numbers(), 5, shuffle=True, seed=0))
    assert same([[batch.X, batch.y] for batch in seen], expected)


def test_a_loader_without_batch_info_is_served_too() -> None:
    for loader in (DataLoader(Numbers(), 5), Loader(Numbers(), 5)):
        batches = list(ToDevice(loader, CPU))
        assert len(batches) == 8
        assert all(batch.info.timing is None for batch in batches)


def test_the_clock_is_told_of_waiting_transfer_and_nothing_else() -> None:
    clock = Clock(CPU, warmup_steps=0)
    count = 0
    for batch in ToDevice(Loader(Numbers(), 5, seed=0), CPU, clock):
        clock.step(len(batch.X), batch.info.nbytes)
        count += 1
    times = clock.epoch()
    assert count == len(times.wait) == 8
    assert (times.wait > 0).all()
    assert (times.transfer == 0).all()  # nothing is moved
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
    ("form", "reported"),
    [("dict", "a batch is a dict;"), ("tensor", "a batch is a Tensor;"), ("tuple", "a batch is a list;")],
)
def test_a_batch_that_is_no_pair_of_tensors_is_an_error_with_the_remedy(form: str, reported: str) -> None:
    with pytest.raises(UserError, match=rf"{reported}.*training needs the pair \(X, y\) of tensors"):
        list(ToDevice(Loader(Formed(form), 3, seed=0), CPU))


@pytest.mark.parametrize("device", ["mps", "xpu"])
@pytest.mark.parametrize(("dtype", "expected"), [(torch.float64, torch.float32), (torch.int64, torch.int64)])
def test_a_batch_of_float64_goes_as_float32_to_a_device_that_may_have_none(
    monkeypatch: pytest.MonkeyPatch, device: str, dtype: torch.dtype, expected: torch.dtype
) -> None:
    sent = []
    monkeypatch.setattr(Tensor, "to", lambda self, device: sent.append(self.dtype) or self)
    monkeypatch.setattr("feedrate.loader.transfer.has_streams", lambda device: False)
    list(ToDevice([(torch.zeros(2, 3, dtype=dtype), torch.zeros(2, dtype=dtype))], torch.device(device)))
    assert sent == [expected] * 2


def test_a_batch_of_none_is_an_error_and_not_the_end_of_the_epoch() -> None:
    with pytest.raises(UserError, match="a batch is a NoneType"):
        list(ToDevice(Loader(Numbers(), 3, seed=0, collate_fn=lambda samples: None), CPU))


# ---------------------------------------------------------------------------------------------------------
# on an accelerator
# ---------------------------------------------------------------------------------------------------------

needs_accelerator = pytest.mark.skipif(
    not torch.accelerator.is_available(), reason="no accelerator: torch.accelerator.is_available() is false"
)


def accelerator() -> torch.device:
    device = torch.accelerator.current_accelerator()
    assert device is not None
    return device


def pin(tensor: Tensor) -> Tensor:
    return tensor.pin_memory() if has_streams(accelerator()) else tensor


# of a sample: 128 MB a batch, so that a copy takes its time; on the simulated accelerator it does so whatever its size
FEATURES = 1 << 10 if simulated_accelerator.loaded() else 1 << 20


@pytest.fixture
def slow_copies() -> Iterator[None]:
    if not simulated_accelerator.loaded():
        yield
        return
    device = simulated_accelerator.Simulated()
    device.delay(copy_s=0.01)
    yield
    device.reset()


def busy(device: torch.device) -> None:
    """Work of the present step that takes the device longer than a copy."""
    if simulated_accelerator.loaded():
        simulated_accelerator.Simulated().sleep(0.03)
        return
    weight = torch.rand(4096, 4096, device=device)
    for _ in range(10):
        weight = weight @ weight / 4096


def seen(batches: Iterator[list[Tensor]], work_first: bool = True) -> list[list[float]]:
    """The extremes of each batch, as a step reads them that begins with other work, or with that."""
    found = []
    for batch in ToDevice(batches, accelerator()):
        assert batch.X.device.type == batch.y.device.type == accelerator().type
        if work_first:
            busy(batch.X.device)
        found.append(torch.stack([batch.X.amin(), batch.X.amax(), batch.y.amin(), batch.y.amax()]))
    return torch.stack(found).tolist()  # type: ignore[no-any-return]


@pytest.mark.gpu
@needs_accelerator
@pytest.mark.usefixtures("slow_copies")
@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("work_first", [True, False])
def test_on_an_accelerator_each_step_sees_its_own_batch_though_the_copy_is_slow(pinned: bool, work_first: bool) -> None:
    def batches() -> Iterator[list[Tensor]]:
        for number in range(12):  # given away at once
            X, y = torch.full((32, FEATURES), float(number)), torch.full((32,), float(number))
            yield [pin(X), pin(y)] if pinned else [X, y]

    assert seen(batches(), work_first) == [[float(i)] * 4 for i in range(12)]


@pytest.mark.gpu
@needs_accelerator
@pytest.mark.usefixtures("slow_copies")
def test_on_an_accelerator_a_host_buffer_is_free_when_the_batch_after_it_has_been_handed_out() -> None:
    buffers = [pin(torch.empty(32, FEATURES)) for _ in range(2)]

    def batches() -> Iterator[list[Tensor]]:
        for number in range(12):
            yield [buffers[number % 2].fill_(number), pin(torch.full((32,), float(number)))]

    assert seen(batches()) == [[float(i)] * 4 for i in range(12)]


@pytest.mark.gpu
@needs_accelerator
@pytest.mark.usefixtures("slow_copies")
def test_on_an_accelerator_a_pass_that_ends_early_or_in_an_error_leaves_the_next_one_right() -> None:
    device = accelerator()
    for batch in ToDevice(Loader(Numbers(), 5, seed=0), device):
        first = batch.y
        break
    with pytest.raises(SampleError, match="not a picture"):
        list(ToDevice(Loader(Faulty("value"), 4, seed=0), device))
    assert first.tolist() == [0, 1, 2, 3, 4]
    batches = list(ToDevice(Loader(Numbers(), 5, seed=0), device))
    assert [i for batch in batches for i in batch.y.tolist()] == list(range(37))


@pytest.mark.gpu
@needs_accelerator
@pytest.mark.usefixtures("slow_copies")
def test_on_an_accelerator_batch_info_belongs_to_their_batches_and_the_clock_reads_events() -> None:
    device = accelerator()
    loader: Any = Loader(Numbers(), 5, shuffle=True, seed=0, pin_memory=has_streams(device))
    clock = Clock(device, warmup_steps=0)
    for batch in ToDevice(loader, device, clock):
        assert loader.IDs(batch.info) == [str(i) for i in batch.y.tolist()]
        busy(device)
        clock.step(len(batch.X), batch.info.nbytes)
    torch.accelerator.synchronize()
    times = clock.epoch()
    assert len(times.compute) == 8
    assert (times.compute > 0).all()
    assert (times.wait >= 0).all()
    assert (times.wait <= times.elapsed).all()
