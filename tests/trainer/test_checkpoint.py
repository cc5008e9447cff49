"""A checkpoint at its final name is always whole, also when its writer is killed at any instant."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from feedrate.errors import UserError
from feedrate.trainer import checkpoint

WRITER = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from feedrate.trainer import checkpoint
number = 0
while True:
    number += 1
    state = {"number": number, "tensor": torch.full((2_000_000,), float(number))}
    checkpoint.save(Path(sys.argv[1]), "last", state)
    print(number, flush=True)
"""


def test_a_writer_killed_at_random_instants_never_leaves_a_damaged_checkpoint(tmp_path):
    source = str(Path(__file__).parents[2] / "src")
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), source], stdout=subprocess.PIPE, text=True)
    writer.stdout.readline()
    moments = random.Random(0)
    for _ in range(12):  # look at the file while it is being replaced again and again, as a kill would leave it
        writer.send_signal(signal.SIGSTOP)
        state = checkpoint.load(tmp_path / "last.pt")
        assert bool((state["tensor"] == state["number"]).all())
        writer.send_signal(signal.SIGCONT)
        time.sleep(moments.uniform(0.001, 0.05))
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    state = checkpoint.load(tmp_path / "last.pt")
    assert bool((state["tensor"] == state["number"]).all())


def test_random_states_survive_a_checkpoint_without_running_code(tmp_path):
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    cpu = torch.device("cpu")
    path = checkpoint.save(tmp_path, "last", {"random": checkpoint.random_state(cpu)})
    expected = torch.rand(3), random.random(), np.random.rand()
    checkpoint.set_random_state(checkpoint.load(path)["random"], cpu)
    assert torch.equal(torch.rand(3), expected[0])
    assert (random.random(), np.random.rand()) == expected[1:]


def test_a_checkpoint_that_the_disk_cannot_hold_is_an_error_with_its_path_and_leaves_nothing(tmp_path):
    checkpoint.save(tmp_path, "last", {"tensor": torch.ones(10)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"last\.pt: cannot be written \(.*\); make room"):
            checkpoint.save(tmp_path, "last", {"tensor": torch.ones(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt"]
    assert torch.equal(checkpoint.load(tmp_path / "last.pt")["tensor"], torch.ones(10))
