"""How a run computes: layout, precision of products and determinism are as set, and off unless set."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import evaluate
from feedrate.errors import UserError
from feedrate.system.device import out_of_memory
from feedrate.trainer.assemble import build_model
from feedrate.trainer.device import set_arithmetic
from saved_run import call, with_config


@pytest.fixture
def seen(monkeypatch):
    """What each convolution found: layout of its input and its weights, precision, determinism."""
    found = []
    original = nn.Conv2d.forward

    def forward(self, x):
        if self.in_channels > 1:  # of one channel both layouts are the same
            layouts = [t.is_contiguous(memory_format=torch.channels_last) for t in (x, self.weight)]
            found.append((*layouts, torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()))
        return original(self, x)

    monkeypatch.setattr(nn.Conv2d, "forward", forward)
    yield found
    set_arithmetic("highest", False)


def test_layout_precision_and_determinism_are_as_set_in_training_and_evaluation(run_train, seen):
    of = ("trainer.max_epochs=1", "loader.batch_size=64")
    plain = run_train(*of)
    assert set(seen) == {(False, False, "highest", False)}
    seen.clear()
    summary = run_train(
        *of, "trainer.channels_last=true", "trainer.matmul_precision=high", "trainer.deterministic=true"
    )
    call(evaluate.main, "evaluate", f"run={with_config(summary)}", "tracking=none")
    assert set(seen) == {(True, True, "high", True)}
    assert summary["metrics"]["validation/loss"] == pytest.approx(plain["metrics"]["validation/loss"], rel=1e-3)
    assert summary["device"] == "cpu (cpu)"


def test_an_operation_without_a_deterministic_kernel_is_named_with_the_remedy(run_train):
    with pytest.raises(UserError, match=r"trainer.deterministic=true: put_ has no .*set trainer.deterministic=false"):
        run_train("dataset=wide", "model=hungry", "model.where=put", "trainer.deterministic=true")
    set_arithmetic("highest", False)


class Volumes(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv3d(2, 2, 1), nn.Conv2d(2, 2, 1))


def test_channels_last_is_the_layout_of_images_and_leaves_volumes_alone():
    data = SimpleNamespace(sample_shape=(2, 4, 4), targets=SimpleNamespace(num_outputs=2))
    node = {"_target_": f"{__name__}.Volumes"}
    model = build_model(node, data, torch.device("cpu"), channels_last=True)
    assert model[1].weight.is_contiguous(memory_format=torch.channels_last)
    assert model[0].weight.is_contiguous()


@pytest.mark.parametrize(
    ("error", "so"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GiB, max allowed: 9.07 GiB)"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("CUDA error: out of memory"), False),
        (None, False),
    ],
)
def test_running_out_of_memory_is_known_by_torchs_words_a_librarys_and_those_of_mps(error, so):
    assert out_of_memory(error) is so
