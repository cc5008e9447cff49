"""A loss that is not a number stops the run, names step and samples, and never reaches the weights."""

from __future__ import annotations

import pytest
import torch

from feedrate.errors import UserError
from feedrate.trainer.guard import LossGuard


@pytest.mark.parametrize("workers", [0, 2])
def test_a_nan_loss_stops_the_run_naming_step_and_samples(run_train, workers):
    overrides = ("loader.shuffle=false", "loader.batch_size=4")
    with pytest.raises(UserError, match=r"the loss is nan at step 1, batch of 'sample-4', .*'sample-7'"):
        run_train("dataset=poisoned", "model=mlp",
                  f"loader.num_workers={workers}", *overrides)  # fmt: skip


def test_weights_are_those_before_the_bad_batch(run_train, monkeypatch):
    seen = {}
    original = LossGuard._stop

    def stop(self, *args):
        seen.update(weights=[p.detach().clone() for g in self._optimizer.param_groups for p in g["params"]])
        original(self, *args)

    monkeypatch.setattr(LossGuard, "_stop", stop)
    with pytest.raises(UserError, match="the loss is nan"):
        run_train("dataset=poisoned", "model=mlp",
"loader.batch_size=4")  # fmt: skip
    assert seen["weights"]
    assert all(torch.isfinite(w).all() for w in seen["weights"])


def test_a_fused_optimizer_leaves_the_weights_alone_when_told_so():
    """The device path, on the CPU: its fused AdamW honours `found_inf` too."""
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    guard = LossGuard(optimizer, torch.device("cpu"), lambda receipt: "batch")
    guard._deferred = True  # as on an accelerator
    for step, factor in enumerate([1.0, float("nan"), 1.0]):
        optimizer.zero_grad()
        loss = (weight * factor).sum()
        guard.look(loss, step, None)
        loss.backward()
        before = weight.detach().clone()
        guard.before_step(scaled=False)
        optimizer.step()
        assert torch.isfinite(weight).all()
        assert torch.equal(weight.detach(), before) == (step == 1)
    with pytest.raises(UserError, match="at step 1"):
        guard.read()
