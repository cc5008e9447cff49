"""A loss that is not a number stops the run, names step and samples, and never reaches the weights."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from feedrate.errors import SampleError, UserError
from feedrate.loader.batch import BatchInfo
from feedrate.loader.order import BatchRequest
from feedrate.trainer.guard import LossGuard
from feedrate.trainer.state import is_lower


@pytest.mark.parametrize("workers", [0, 2])
def test_a_nan_loss_stops_the_run_naming_step_and_samples(run_train, workers):
    overrides = ("loader.shuffle=false", "loader.batch_size=4", "+dataset.value=3e38")
    with pytest.raises(UserError, match=r"the loss is (nan|inf) at step 1, batch of 'sample-4', .*'sample-7'"):
        run_train("dataset=poisoned", "model=mlp",
                  f"loader.num_workers={workers}", *overrides)  # fmt: skip


def test_a_sample_that_is_not_finite_is_named_itself(run_train):
    with pytest.raises(SampleError, match=r"sample 'sample-7': X or y holds a value that is not finite") as caught:
        run_train("dataset=poisoned", "model=mlp")
    assert caught.value.ID == "sample-7"


def test_a_validation_loss_that_is_not_finite_is_never_the_best(run_train, caplog):
    overrides = ("+dataset.where=validation", "+dataset.value=3e38", "trainer.early_stopping=1")
    summary = run_train("dataset=poisoned", "model=mlp", "loader.batch_size=4", "trainer.max_epochs=3", *overrides)
    assert summary["epochs"] == 3
    assert not summary["stopped"]
    assert summary["best"]["validation/loss"] is None
    assert "note: the validation loss is not finite; this epoch cannot be the best" in caplog.text
    text = (summary["folder"] / "summary.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text


def test_a_validation_sample_that_is_not_finite_is_named_itself(run_train):
    with pytest.raises(SampleError, match=r"sample 'sample-7': X or y holds a value that is not finite"):
        run_train("dataset=poisoned", "model=mlp", "loader.batch_size=4", "+dataset.where=validation")


@pytest.mark.parametrize(
    ("loss", "best", "lower"),
    [(1.0, 2.0, True), (2.0, 1.0, False), (math.nan, 1.0, False), (math.inf, math.nan, False), (5.0, math.nan, True)],
)
def test_the_best_epoch_is_one_with_a_finite_loss_where_there_is_one(loss, best, lower):
    assert is_lower(loss, best) is lower


def test_weights_are_those_before_the_bad_batch(run_train, monkeypatch):
    seen = {}
    original = LossGuard._stop

    def stop(self, *args):
        seen.update(weights=[p.detach().clone() for g in self._optimizer.param_groups for p in g["params"]])
        original(self, *args)

    monkeypatch.setattr(LossGuard, "_stop", stop)
    with pytest.raises(UserError, match="'sample-7': X or y holds"):
        run_train("dataset=poisoned", "model=mlp",
"loader.batch_size=4")  # fmt: skip
    assert seen["weights"]
    assert all(torch.isfinite(w).all() for w in seen["weights"])


UNKNOWN = BatchInfo(BatchRequest(0, 0, 0, np.empty(0, dtype=np.int64)))


def test_a_fused_optimizer_leaves_the_weights_alone_when_told_so():
    """The device path, on the CPU: its fused AdamW honours `found_inf` too."""
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    guard = LossGuard(optimizer, torch.device("cpu"), SimpleNamespace(IDs=lambda info: []))
    guard._deferred = True  # as on an accelerator
    for step, factor in enumerate([1.0, float("nan"), 1.0]):
        optimizer.zero_grad()
        loss = (weight * factor).sum()
        guard.check(loss, step, UNKNOWN)
        loss.backward()
        before = weight.detach().clone()
        guard.before_step(scaled=False)
        optimizer.step()
        assert torch.isfinite(weight).all()
        assert torch.equal(weight.detach(), before) == (step == 1)
    with pytest.raises(UserError, match="at step 1"):
        guard.read()
