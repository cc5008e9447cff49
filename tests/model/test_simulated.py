"""The simulated model takes the time of its step without the CPU, and trains none the less."""

from __future__ import annotations

import threading
import time

import torch
from torch import nn

from feedrate.model import Simulated


def test_a_training_step_takes_step_ms_and_leaves_the_cpu_alone() -> None:
    model = Simulated((3, 32, 32), 10, step_ms=60)
    X, y = torch.rand(16, 3, 32, 32), torch.zeros(16, dtype=torch.int64)
    nn.functional.cross_entropy(model(X), y).backward()  # first calls load code

    wall_ns, cpu_ns = time.perf_counter_ns(), time.process_time_ns()
    for _ in range(5):
        nn.functional.cross_entropy(model(X), y).backward()
    wall_ns, cpu_ns = time.perf_counter_ns() - wall_ns, time.process_time_ns() - cpu_ns
    assert wall_ns >= 5 * 60e6
    assert cpu_ns < wall_ns / 2


def test_a_forward_pass_takes_a_third_of_step_ms_in_training_and_in_evaluation() -> None:
    model = Simulated((8,), 2, step_ms=60)
    for mode in (True, False):
        model.train(mode)
        start_ns = time.perf_counter_ns()
        with torch.no_grad():
            model(torch.rand(4, 8))
        assert time.perf_counter_ns() - start_ns >= 20e6


def test_other_threads_run_while_it_sleeps() -> None:
    """A loader's threads make batches during the step: it must not hold Python's lock."""
    model = Simulated((8,), 2, step_ms=300)
    done = threading.Event()
    counted: list[int] = []

    def count() -> None:
        while not done.is_set():
            counted.append(1)
            time.sleep(0)

    thread = threading.Thread(target=count)
    model(torch.rand(4, 8))
    thread.start()
    for _ in range(20):  # on a busy machine the thread may have no turn during one step
        outputs, before = model(torch.rand(4, 8)), len(counted)
        outputs.sum().backward()
        if len(counted) > before + 100:
            break
    done.set()
    thread.join()
    assert len(counted) > before + 100


def test_it_still_trains() -> None:
    torch.manual_seed(0)
    X = torch.rand(256, 1, 8, 8)
    y = (X[:, 0, 0, 0] > X[:, 0, 7, 7]).long()
    model = Simulated((1, 8, 8), 2, step_ms=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), y).backward()
        optimizer.step()
    assert (model(X).argmax(1) == y).float().mean() > 0.95


def test_its_gradient_is_that_of_the_linear_layer_alone() -> None:
    torch.manual_seed(0)
    model = Simulated((2, 5), 3, step_ms=0)
    X = torch.rand(4, 2, 5)
    model(X).square().sum().backward()
    plain = nn.Linear(10, 3)
    plain.load_state_dict(model.head.state_dict())
    plain(X.flatten(1)).square().sum().backward()
    assert torch.equal(model.head.weight.grad, plain.weight.grad)
    assert torch.equal(model.head.bias.grad, plain.bias.grad)


def test_the_layout_of_the_samples_in_memory_does_not_matter() -> None:
    model = Simulated((3, 40, 30), 2, step_ms=0)
    X = torch.rand(2, 3, 40, 30)
    assert torch.equal(model(X), model(X.to(memory_format=torch.channels_last)))
